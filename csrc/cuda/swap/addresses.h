// Looks addresses up in the driver: the device that their memory is on, and the addresses at which a GPU accesses it.
#pragma once

#include <cstdint>
#include <optional>

#include "params/swap_params.h"
#include "vendor/driver.h"

namespace multikv::gpu {

// Returns the address at which a GPU accesses `num_bytes` bytes of the host's memory, or nullptr if some of them are
// not pinned, or are not contiguous for a GPU. `memory` keeps the range that was last found, because the next tensor
// often lies in the same range.
void* gpu_address_of_host(const void* address, int64_t num_bytes, std::optional<Memory>& memory);

// The source or the destination of a copy, after its address was looked up.
struct ResolvedSide {
  uintptr_t gpu_address = 0;  // the address at which a GPU accesses the memory; 0: no GPU can
  int32_t device = -1;        // -1: the host

  bool is_visible() const { return gpu_address != 0; }
};

struct ResolvedCopy {
  ResolvedSide src, dst;
};

// The params of swap_blocks_batch, and its addresses after they were looked up. launch() takes this struct for the op.
struct ResolvedSwapBatch {
  SwapBlocksBatchParams batch;
  const ResolvedCopy* resolved;  // [batch.num_copies]
};

// Looks up all addresses. If the driver knows the memory at the start of a copy, the function throws unless the driver
// knows all memory of the copy, with one device and one gpu_delta. If the driver does not know the start, the function
// throws unless the first and the last byte of the copy are readable. The result points to data of the calling thread,
// which the thread's next call overwrites.
ResolvedSwapBatch resolve_addresses(const SwapBlocksBatchParams& p);

}  // namespace multikv::gpu
