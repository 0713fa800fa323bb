// Launches the kernels of split_kernel.cuh and prefill_kernel.cuh.
#pragma once

#include "cuda/attention/launch_attention.h"
#include "cuda/attention/prefill_kernel.cuh"
#include "cuda/attention/split_kernel.cuh"

namespace multikv::gpu {

// Thread blocks and stages of a launch.
struct SplitShape {
  int stages;
  int shared_bytes;
  int blocks_per_multiprocessor;
};

// Fits two thread blocks into a multiprocessor's shared memory, or one if two had less than kFewStages stages.
inline SplitShape split_shape(const SharedMemory& memory, int fixed_bytes, int stage_bytes) {
  constexpr int kFewStages = 3, kReservedBytes = 1024;  // the system reserves 1 KiB for each thread block
  for (int blocks = 2; blocks > 0; --blocks) {
    const int bytes = std::min(memory.multiprocessor_bytes / blocks - kReservedBytes, memory.block_bytes);
    const int stages = std::min(kMaxStages, (bytes - fixed_bytes) / stage_bytes);
    if (stages >= kFewStages || (blocks == 1 && stages >= 2))
      return {stages, fixed_bytes + stages * stage_bytes, blocks};
  }
  return {};
}

template <class Store, int kHeadSize, int kTiles>
cudaError_t launch_split(AttentionProblem p, const Context& context) {
  constexpr int kRows = 16 * kTiles;
  using Loader = TileLoader<Store, kHeadSize, SplitTileShape<kTiles>>;
  constexpr int kFixedBytes = (sizeof(SplitShared<kHeadSize, kTiles>) + 127) / 128 * 128;
  const auto kernel = split_attention_kernel<Store, kHeadSize, kTiles>;
  const SplitShape shape = split_shape(shared_memory(context.device_index), kFixedBytes, Loader::kStageBytes);
  if (shape.stages == 0) return cudaErrorNotSupported;
  MULTIKV_RETURN_IF_FAILED((
      allow_shared_memory<split_attention_kernel<Store, kHeadSize, kTiles>>(context.device_index, shape.shared_bytes)));

  const int64_t rows = std::min(p.group.signed_value() * p.sequences.max_query_len, p.max_rows);
  const int64_t tiles = p.sequences.num_sequences * p.num_kv_heads * ceil_div<int64_t>(rows, kRows);
  const int64_t granules = ceil_div<int64_t>(std::max<int64_t>(p.sequences.max_seq_len, 1), kGranule);
  p.slot_rows = std::min<int64_t>(rows, kRows);
  p.num_slots = p.workspace.num_bytes / Partials::bytes_per_slot(p.slot_rows, p.value_size);
  p.nonce = next_nonce();
  const int64_t most = int64_t{context.num_multiprocessors} * shape.blocks_per_multiprocessor;
  const int64_t units = p.num_slots > 0 ? tiles * granules : tiles;
  const auto blocks = static_cast<unsigned>(std::min(most, units));
  kernel<<<blocks, kSplitThreads, shape.shared_bytes, context.stream>>>(p, shape.stages);
  return cudaGetLastError();
}

// Launches the prefill kernel. Returns cudaErrorNotSupported if the device has too little shared memory.
template <class Store, int kHeadSize>
cudaError_t launch_prefill(AttentionProblem p, const Context& context) {
  using Loader = TileLoader<Store, kHeadSize, PrefillTileShape>;
  constexpr int kFixedBytes = (sizeof(PrefillShared<kHeadSize>) + 127) / 128 * 128, kStages = 3;
  const int bytes = shared_memory(context.device_index).block_bytes - kFixedBytes;
  const int stages = std::min(kStages, bytes / Loader::kStageBytes);
  if (stages < 2) return cudaErrorNotSupported;
  const int shared_bytes = kFixedBytes + stages * Loader::kStageBytes;
  MULTIKV_RETURN_IF_FAILED(
      (allow_shared_memory<prefill_attention_kernel<Store, kHeadSize>>(context.device_index, shared_bytes)));
  const int64_t rows = p.sequences.num_rows * p.group.signed_value();
  const int64_t tiles = (rows / kPrefillRows + p.sequences.num_sequences) * p.num_kv_heads;
  prefill_attention_kernel<Store, kHeadSize>
      <<<static_cast<unsigned>(tiles), kPrefillThreads, shared_bytes, context.stream>>>(p, stages);
  return cudaGetLastError();
}

// Sequences with more rows than kMaxSplitRows are left to the prefill kernel, if there may be some with more than
// kMinPrefillRows.
inline constexpr int64_t kMaxSplitRows = 16, kMinPrefillRows = 64;

template <class Store, int kHeadSize>
cudaError_t launch_rows(AttentionProblem p, const Context& context) {
  const int64_t rows = p.group.signed_value() * p.sequences.max_query_len;
  if (rows > kMinPrefillRows) {
    p.min_rows = kMaxSplitRows + 1;
    const cudaError_t error = launch_prefill<Store, kHeadSize>(p, context);
    if (error != cudaSuccess && error != cudaErrorNotSupported) return error;
    p.min_rows = 0;
    if (error == cudaSuccess) {
      p.max_rows = kMaxSplitRows;
      return launch_split<Store, kHeadSize, 1>(p, context);
    }
  }
  return rows <= 16 ? launch_split<Store, kHeadSize, 1>(p, context) : launch_split<Store, kHeadSize, 2>(p, context);
}

template <class Store>
cudaError_t launch_matrix(const AttentionProblem& p, const Context& context) {
  if constexpr (kHasMatrixInstructions) {
    const int size = std::max(p.key_size, p.value_size);
    if (size <= 64) return launch_rows<Store, 64>(p, context);
    if (size <= 128) return launch_rows<Store, 128>(p, context);
    return launch_split<Store, 256, 1>(p, context);  // two tiles, or 16 rows of a warp, do not fit into registers
  }
  return cudaErrorNotSupported;
}

}  // namespace multikv::gpu
