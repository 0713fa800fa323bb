// Launches ops: runs the kernel of an op over all its items, on one or on several threads.
#pragma once

#include "core/work.h"
#include "cpu/dispatch.h"
#include "cpu/duplicate_slots.h"
#include "cpu/parallel.h"
#include "params/attention_params.h"
#include "params/swap_params.h"

namespace multikv::cpu {

// Returns kStreaming for outputs of at least the size of the L2 cache. For outputs that are not read soon
// (Work::is_read_soon), a sixteenth of that size is enough.
Stores stores_for(const Work& work);

// Runs an op. If two tokens have the same slot, one thread writes all tokens in order: the slot then holds the last of
// the two tokens, and never a mixture of both.
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

// paged_attention distributes its work by the lengths of the sequences (attention.cpp).
void launch(const PagedAttentionParams& p);

// swap_blocks_batch may receive addresses of GPU memory. If a GPU library is loaded, it is called first; the CPU kernel
// then runs only if the GPU library reports that this process has no context on the current GPU.
void launch(const SwapBlocksBatchParams& p);

// multikv_gpu_swap_batch of the GPU library (c_api.h).
using GpuSwapBatch = const char* (*)(const void* params, int32_t* is_done);
void set_gpu_swap_batch(GpuSwapBatch function);

}  // namespace multikv::cpu
