// Scratch memory of kernels.
#pragma once

#include <cstdint>

namespace multikv::cpu {

// Returns memory of the calling thread, aligned to a cache line. The thread keeps it for its next call. Throws
// std::bad_alloc. Kernels are compiled without exceptions, and the exception skips their destructors: they call this
// before they change any state.
char* scratch_of_thread(int64_t num_bytes);

}  // namespace multikv::cpu
