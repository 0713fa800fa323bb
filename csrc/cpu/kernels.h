// The kernels: run(), which isa/<family>.cpp defines once per instruction set.
#pragma once

#include <cstdint>

namespace multikv::cpu {

enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512 };

// Whether a kernel writes its output with ordinary or with streaming stores.
enum class Stores : uint8_t { kOrdinary, kStreaming };

// Runs the items [begin, end) of p.work() on the calling thread. This template is never defined: isa/<family>.cpp
// specialises it for each of its params and for the instruction set that the file is compiled for. A library that lacks
// a specialisation does not link.
template <Isa isa, class Params>
void run(const Params& p, int64_t begin, int64_t end, Stores stores);

}  // namespace multikv::cpu
