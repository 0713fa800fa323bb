// What the driver knows of addresses: the device of their memory, and where a GPU finds it.
#pragma once

#include <cstdint>
#include <optional>

#include "params/swap_params.h"
#include "vendor/driver.h"

namespace multikv::gpu {

// Where a GPU finds `num_bytes` bytes of the host's memory; nullptr if some of them are not pinned, or a GPU sees them
// in several pieces. `memory` is the range that was last found: the next tensor often lies in the same range.
void* view_of_host(const void* address, int64_t num_bytes, std::optional<Memory>& memory);

// One side of a copy, looked up.
struct ResolvedSide {
  uintptr_t view = 0;   // where a GPU finds it; 0: a GPU cannot read it
  int32_t device = -1;  // -1: the host

  bool is_visible() const { return view != 0; }
};

struct ResolvedCopy {
  ResolvedSide src, dst;
};

// swap_blocks_batch with its addresses looked up: what launch() takes for this op.
struct ResolvedSwapBatch {
  SwapBlocksBatchParams batch;
  const ResolvedCopy* resolved;  // [batch.num_copies]
};

// Looks up all addresses, and throws if there is an address without memory. The result is valid until the thread's next
// call.
ResolvedSwapBatch resolve_addresses(const SwapBlocksBatchParams& p);

}  // namespace multikv::gpu
