// Scratch memory of kernels.
#pragma once

#include <cstdint>

namespace multikv::cpu {

// Returns memory of the calling thread, aligned to a cache line. The thread keeps the memory for its next call. Throws
// std::bad_alloc. Kernels are compiled with -fno-exceptions, so an exception that passes through a kernel does not run
// the destructors of the kernel's objects. A kernel therefore calls this function before it changes any state.
char* scratch_of_thread(int64_t num_bytes);

}  // namespace multikv::cpu
