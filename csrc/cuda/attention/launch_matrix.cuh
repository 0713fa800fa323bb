// Launches the kernels of split_kernel.cuh, cluster_kernel.cuh and prefill_kernel.cuh.
#pragma once

#include "cuda/attention/cluster_kernel.cuh"
#include "cuda/attention/launch_attention.h"
#include "cuda/attention/prefill_kernel.cuh"
#include "cuda/attention/split_kernel.cuh"

namespace multikv::gpu {

template <class Store, int kHeadSize, int kRows, bool kHasVectors>
cudaError_t launch_split(AttentionProblem p, const Context& context) {
  using Shape = SplitShape<Store, kHeadSize>;
  const auto kernel = split_attention_kernel<Store, kHeadSize, kRows, kHasVectors>;
  constexpr int kStagingBytes = kHasVectors ? 0 : Shape::kWarps * Shape::kStagingBytes;
  if constexpr (!kHasVectors) {
    MULTIKV_RETURN_IF_FAILED((allow_shared_memory<split_attention_kernel<Store, kHeadSize, kRows, kHasVectors>>(
        context.device_index, kStagingBytes)));
  }
  const int64_t rows = std::min(p.group.signed_value() * p.sequences.max_query_len, p.max_rows);
  const int64_t tiles = p.sequences.num_sequences * p.num_kv_heads * ceil_div<int64_t>(rows, kRows);
  const int64_t granules = ceil_div<int64_t>(std::max<int64_t>(p.sequences.max_seq_len, 1), kGranule);
  p.tile_rows = kRows;
  p.slot_rows = std::min<int64_t>(rows, kRows);
  p.num_slots = granules > 1 ? p.workspace.num_bytes / Partials::bytes_per_slot(p.slot_rows, p.value_size) : 0;
  const int64_t most = int64_t{context.num_multiprocessors} * kSplitBlocks<Store, kHeadSize, kRows>;
  const auto blocks = static_cast<unsigned>(std::min(most, p.num_slots > 0 ? tiles * granules : tiles));
  kernel<<<blocks, Shape::kThreads, kStagingBytes, context.stream>>>(p);
  MULTIKV_RETURN_IF_FAILED(cudaGetLastError());
  return p.num_slots > 0 ? launch_join(p, blocks, context) : cudaSuccess;
}

// The most granules of a thread block of the cluster kernel. The host knows only the bound of all lengths, max_seq_len.
// If one sequence is much longer than the others, the launch takes as long as the thread blocks of that sequence. The
// split kernel has no such wait, because its thread blocks have equal shares of all granules.
inline constexpr int64_t kMostClusterGranules = 16;

// What a call of few query rows asks of the cluster kernel, and what a device has for it.
struct ClusterCall {
  int64_t clusters, granules;  // one cluster for each tile; the granules of a tile
  int64_t multiprocessors;
  bool has_large_blocks;  // a multiprocessor has shared memory for only one thread block
  int64_t most_blocks;    // of a cluster

  // Returns the number of thread blocks of a cluster, or 0 if the split kernel is faster. Measured on an H100.
  int64_t blocks() const {
    if (clusters > multiprocessors) {
      const int64_t rounds = ceil_div(clusters, multiprocessors);
      const bool fills_rounds = 10 * clusters >= 7 * rounds * multiprocessors;  // to at least 70%
      return granules <= kMostClusterGranules && fills_rounds ? 1 : 0;
    }
    int64_t blocks = std::min(multiprocessors / clusters, std::min(granules, most_blocks));
    // A cluster runs on neighbouring multiprocessors. Large clusters leave some multiprocessors idle.
    if (has_large_blocks && blocks > 2) {
      blocks = std::max<int64_t>(2, std::min(blocks, multiprocessors * 3 / 4 / clusters));
    }
    const int64_t most = std::min(kMostClusterGranules, ceil_div(clusters * granules, multiprocessors) + 1);
    return ceil_div(granules, blocks) <= most ? blocks : 0;
  }
};

// Launches the cluster kernel. Returns cudaErrorNotSupported if the split kernel is to be used.
template <class Store, int kHeadSize, int kRows>
cudaError_t launch_clusters(AttentionProblem p, int64_t rows, const Context& context) {
  using Memory = ClusterMemory<Store, kHeadSize, kRows>;
  constexpr int64_t kMostGridSize = 65535;  // of y and z
  const int64_t most_blocks = most_cluster_blocks(context.device_index);
  if (most_blocks == 0) return cudaErrorNotSupported;
  const SharedMemory memory = shared_memory(context.device_index);
  const int64_t tiles = ceil_div<int64_t>(rows, kRows), heads = tiles * p.num_kv_heads;
  const int64_t granules = ceil_div<int64_t>(std::max<int64_t>(p.sequences.max_seq_len, 1), kGranule);
  const bool has_large_blocks = 2 * (Memory::bytes(0) + kReservedSharedBytes) > memory.multiprocessor_bytes;
  const ClusterCall call{heads * p.sequences.num_sequences, granules, context.num_multiprocessors, has_large_blocks,
                         most_blocks};
  const int64_t blocks = call.blocks();
  if (blocks == 0 || std::max(heads, p.sequences.num_sequences) > kMostGridSize) return cudaErrorNotSupported;
  const int bytes = Memory::bytes(blocks == 1 ? 0 : static_cast<int>(ceil_div(granules, blocks)));
  if (bytes > memory.block_bytes) return cudaErrorNotSupported;
  MULTIKV_RETURN_IF_FAILED(
      (allow_shared_memory<cluster_attention_kernel<Store, kHeadSize, kRows>>(context.device_index, bytes)));
  p.tile_rows = kRows;
  p.tiles_per_head = static_cast<int>(tiles);
  p.tile_blocks = static_cast<int>(blocks);
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(heads),
                  static_cast<unsigned>(p.sequences.num_sequences));
  return launch_cluster_grid(cluster_attention_kernel<Store, kHeadSize, kRows>, grid,
                             ClusterShape<Store, kHeadSize>::kThreads, bytes, context.stream, p);
}

template <class Store, int kHeadSize>
cudaError_t launch_split(const AttentionProblem& p, const Context& context) {
  const int64_t rows = std::min(p.group.signed_value() * p.sequences.max_query_len, p.max_rows);
  if (p.key.has_vectors && p.value.has_vectors) {
    const cudaError_t error = rows <= 8 ? launch_clusters<Store, kHeadSize, 8>(p, rows, context)
                                        : launch_clusters<Store, kHeadSize, 16>(p, rows, context);
    if (error != cudaErrorNotSupported) return error;
    return rows <= 8 ? launch_split<Store, kHeadSize, 8, true>(p, context)
                     : launch_split<Store, kHeadSize, 16, true>(p, context);
  }
  return launch_split<Store, kHeadSize, 16, false>(p, context);
}

// Launches the prefill kernel. Returns cudaErrorNotSupported if the device has too little shared memory.
template <class Store, int kHeadSize>
cudaError_t launch_prefill(AttentionProblem p, const Context& context) {
  using Loader = TileLoader<Store, kHeadSize, kPrefillThreads>;
  constexpr int kFixedBytes = (sizeof(PrefillShared<kHeadSize>) + 127) / 128 * 128, kStages = 3;
  const int bytes = shared_memory(context.device_index).block_bytes - kFixedBytes;
  const int stages = std::min(kStages, bytes / Loader::kStageBytes);
  if (stages < 2) return cudaErrorNotSupported;
  const int shared_bytes = kFixedBytes + stages * Loader::kStageBytes;
  MULTIKV_RETURN_IF_FAILED(
      (allow_shared_memory<prefill_attention_kernel<Store, kHeadSize>>(context.device_index, shared_bytes)));
  p.tile_rows = kPrefillRows;
  const int64_t rows = p.sequences.num_rows * p.group.signed_value();
  const int64_t tiles = (rows / kPrefillRows + p.sequences.num_sequences) * p.num_kv_heads;
  prefill_attention_kernel<Store, kHeadSize>
      <<<static_cast<unsigned>(tiles), kPrefillThreads, shared_bytes, context.stream>>>(p, stages);
  return cudaGetLastError();
}

// Launches one of the prefill kernels.
template <class Store, int kHeadSize>
cudaError_t launch_many_rows(const AttentionProblem& p, const Context& context) {
  const cudaError_t error = launch_warpgroup_attention<Store::kElement>(p, context);
  if (error != cudaErrorNotSupported) return error;
  return launch_prefill<Store, kHeadSize>(p, context);
}

// If a call may have sequences with more than kMinPrefillRows rows, a prefill kernel serves all sequences with more
// than kMaxSplitRows rows.
inline constexpr int64_t kMaxSplitRows = 16, kMinPrefillRows = 64;

template <class Store, int kHeadSize>
cudaError_t launch_rows(AttentionProblem p, const Context& context) {
  const int64_t rows = p.group.signed_value() * p.sequences.max_query_len;
  if (rows > kMinPrefillRows) {
    p.min_rows = kMaxSplitRows + 1;
    const cudaError_t error = launch_many_rows<Store, kHeadSize>(p, context);
    if (error != cudaSuccess && error != cudaErrorNotSupported) return error;
    p.min_rows = 0;
    if (error == cudaSuccess) {
      p.max_rows = kMaxSplitRows;
      return launch_split<Store, kHeadSize>(p, context);
    }
  }
  return launch_split<Store, kHeadSize>(p, context);
}

template <class Store>
cudaError_t launch_matrix(const AttentionProblem& p, const Context& context) {
  if constexpr (kHasMatrixInstructions) {
    const int size = std::max(p.key_size, p.value_size);
    if (size <= 64) return launch_rows<Store, 64>(p, context);
    if (size <= 128) return launch_rows<Store, 128>(p, context);
    return launch_split<Store, 256>(p, context);
  }
  return cudaErrorNotSupported;
}

}  // namespace multikv::gpu
