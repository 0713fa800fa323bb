// Launches the kernels of split_kernel.cuh and prefill_kernel.cuh.
#pragma once

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

template <class Store, int kHeadSize>
cudaError_t launch_split(const AttentionProblem& p, const Context& context) {
  const int64_t rows = std::min(p.group.signed_value() * p.sequences.max_query_len, p.max_rows);
  if (p.key.has_vectors && p.value.has_vectors) {
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

// Launches one of the prefill kernels. The one of warpgroups is compiled for bfloat16 caches, with which it has been
// tested on a GPU.
template <class Store, int kHeadSize>
cudaError_t launch_many_rows(const AttentionProblem& p, const Context& context) {
  if constexpr (Store::kElement == Element::kBFloat16) {
    const cudaError_t error = launch_warpgroup_attention<Store::kElement>(p, context);
    if (error != cudaErrorNotSupported) return error;
  }
  return launch_prefill<Store, kHeadSize>(p, context);
}

// Sequences with more rows than kMaxSplitRows are left to a prefill kernel, if there may be some with more than
// kMinPrefillRows.
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
