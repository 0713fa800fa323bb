// Work over torch's own threads, split by bytes.
#pragma once

#include <cstdint>

#include "params/params.h"

namespace multikv::cpu {

void parallel_for(int64_t count, int64_t bytes_per_item, void (*body)(int64_t, int64_t, void*), void* context);

// Runs body(begin, end) over [0, count) on as many threads as the bytes are worth.
template <class Body>
void parallel_for(int64_t count, int64_t bytes_per_item, const Body& body) {
  const auto call = [](int64_t begin, int64_t end, void* context) { (*static_cast<const Body*>(context))(begin, end); };
  parallel_for(count, bytes_per_item, +call, const_cast<Body*>(&body));
}

// True where parallel_for would use more than one thread.
bool is_parallel(int64_t count, int64_t bytes_per_item);

// True where two tokens write one slot: such a call runs on one thread, so that the last token wins as a whole.
bool has_duplicate_slots(const Slots& slots);

// Outputs of so many bytes bypass the caches: those of a core's own one, the second. The third would hold more of them,
// but storing there reads every line from memory first and writes it back later. Measured (docs/performance_cpu.md):
// from here on streaming is faster, and still is when the output is read right after.
int64_t streaming_crossover_bytes();

}  // namespace multikv::cpu
