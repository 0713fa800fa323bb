// Launches the kernel of warpgroup_kernel.cuh.
#pragma once

#include "cuda/attention/launch_attention.h"
#include "cuda/attention/warpgroup_kernel.cuh"

namespace multikv::gpu {

template <class Store, int kHeadSize>
cudaError_t launch_warpgroups(AttentionProblem p, const Context& context) {
  constexpr int kSharedBytes = sizeof(WarpgroupShared<kHeadSize>);
  MULTIKV_RETURN_IF_FAILED(
      (allow_shared_memory<warpgroup_attention_kernel<Store, kHeadSize>>(context.device_index, kSharedBytes)));
  p.tile_rows = kWarpgroupTileRows;
  const int64_t rows = p.sequences.num_rows * p.group.signed_value();
  const int64_t tiles = (rows / kWarpgroupTileRows + p.sequences.num_sequences) * p.num_kv_heads;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(tiles, context.num_multiprocessors));
  warpgroup_attention_kernel<Store, kHeadSize><<<blocks, kWarpgroupKernelThreads, kSharedBytes, context.stream>>>(p);
  return cudaGetLastError();
}

template <class Store>
cudaError_t launch_warpgroups(const AttentionProblem& p, const Context& context) {
  if constexpr (kHasWarpgroupInstructions) {
    if (!has_warpgroup_instructions(context.device_index) || !p.key.has_vectors || !p.value.has_vectors) {
      return cudaErrorNotSupported;
    }
    const int size = std::max(p.key_size, p.value_size);
    if (size <= 64) return launch_warpgroups<Store, 64>(p, context);
    if (size <= 128) return launch_warpgroups<Store, 128>(p, context);
  }
  return cudaErrorNotSupported;
}

}  // namespace multikv::gpu
