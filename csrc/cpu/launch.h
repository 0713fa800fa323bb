// From the params of an op to its kernel on all threads.
#pragma once

#include "core/work.h"
#include "cpu/dispatch.h"
#include "cpu/duplicate_slots.h"
#include "cpu/parallel.h"
#include "params/swap_params.h"

namespace multikv::cpu {

// Streaming stores for outputs that are larger than the L2 cache; for outputs that are not read soon from a sixteenth
// of that size on.
Stores stores_for(const Work& work);

// Runs an op. Tokens are spread over threads only if they go to different slots; with duplicate slots one thread writes
// them in order, so that the last token wins as a whole.
template <class Params>
void launch(const Params& p) {
  constexpr int64_t kCacheLine = 64;
  const Work work = p.work();
  const Stores stores = stores_for(work);
  const int64_t bytes = work.bytes_read + work.bytes_written;
  const auto body = [&](int64_t begin, int64_t end) { run_on_active_isa(p, begin, end, stores); };
  if constexpr (WritesTokens<Params>) {
    const bool is_ordered = is_parallel(work.num_items, bytes) && has_duplicate_slots(p);
    if (is_ordered) body(0, work.num_items);
    else parallel_for(work.num_items, bytes, body);
  } else if (bytes < kCacheLine) {
    parallel_for_small_items(work.num_items, bytes, body);
  } else {
    parallel_for(work.num_items, bytes, body);
  }
}

// The addresses of swap_blocks_batch may be a GPU's: the GPU's library is asked first, if one is loaded.
void launch(const SwapBlocksBatchParams& p);

// multikv_gpu_swap_batch of the GPU library (c_api.h).
using GpuSwapBatch = const char* (*)(const void* params, int32_t* is_done);
void set_gpu_swap_batch(GpuSwapBatch function);

}  // namespace multikv::cpu
