// Gathers keys and values from caches of the packed layout: keys [blocks, heads, head_size / vector_size, block_size,
// vector_size], and values [blocks, heads, block_size / vector_size, head_size, vector_size].
#pragma once

#include "cuda/cache/gather_heads.cuh"
#include "cuda/cache/packed_keys.cuh"

namespace multikv::gpu {

constexpr int kPackedTokens = 32;  // the tokens of a thread block, one for each lane of a warp
constexpr int kPackedDims = 64;    // the dimensions of values that are transposed at a time

// Gathers the keys of one head of a chunk of tokens. A warp covers 4 vectors of each of 8 tokens:
//
//   lane     0 1 2 3   4 5 6 7   ...   28 29 30 31
//   token    0 0 0 0   1 1 1 1   ...    7  7  7  7
//   vector   0 1 2 3   0 1 2 3   ...    0  1  2  3
//
// Lanes of neighbouring tokens read neighbouring memory, and lanes of neighbouring vectors write neighbouring memory.
template <GatherMove Move>
__device__ __forceinline__ void gather_packed_keys(const HeadPlane& plane, const BlockOffset* slots, int64_t first,
                                                   int64_t head) {
  constexpr int kNear = 4, kTokenStep = 32 / kNear, kVectorStep = kThreads / kTokenStep;
  const PackedCache& cache = plane.gather.cache;
  const int lane = threadIdx.x % 32, token = lane / kNear;
  const char* heads = cache.data + head * cache.stride_head_bytes;
  int64_t vector = threadIdx.x / 32 * kNear + lane % kNear;
  for (; vector < plane.head_vectors.signed_value(); vector += kVectorStep) {
    const int64_t piece = divide_index(vector, plane.piece_vectors);
    const int64_t in_piece = vector - piece * plane.piece_vectors.signed_value();
    const char* from = heads + piece * cache.stride_vector_bytes + in_piece * Move::kCacheBytes;
    typename Move::Value values[kPackedTokens / kTokenStep];
#pragma unroll
    for (int i = 0; i < kPackedTokens / kTokenStep; ++i) {
      const BlockOffset at = slots[token + i * kTokenStep];
      if (at.block < 0) continue;
      const char* slot = from + at.block * cache.stride_block_bytes + at.offset * cache.stride_row_bytes;
      values[i] = Move::read(slot, cache.scale_of(head));
    }
#pragma unroll
    for (int i = 0; i < kPackedTokens / kTokenStep; ++i) {
      const int t = token + i * kTokenStep;
      if (slots[t].block < 0) continue;
      Move::write(plane.gather.dst.head(first + t, head) + vector * Move::kOutputBytes, values[i], cache.codec.element);
    }
  }
}

// Values of a chunk of tokens, transposed in shared memory: words[token] holds kPackedDims elements, and a padding
// word, which spreads a dimension of all tokens over the banks.
template <class Stored>
struct GatheredValues {
  static constexpr int kWords = kPackedDims * static_cast<int>(sizeof(Stored)) / 4;
  uint32_t words[kPackedTokens][kWords + 1];

  __device__ Stored* row(int token) { return reinterpret_cast<Stored*>(words[token]); }
};

// Gathers the values of one head of a chunk of tokens. The lanes of a warp read one dimension of all tokens, which is
// contiguous where slots are neighbours; afterwards, neighbouring threads write neighbouring vectors of a token.
template <GatherMove Move, class Stored>
__device__ __forceinline__ void gather_packed_values(const HeadPlane& plane, const BlockOffset* slots, int64_t first,
                                                     int64_t head) {
  constexpr int kBytes = sizeof(Stored), kElements = Move::kCacheBytes / kBytes, kWarps = kThreads / 32;
  __shared__ GatheredValues<Stored> values;
  const auto& [cache, packs_slots, dst, num_heads, head_size] = plane.gather;
  const int lane = threadIdx.x % 32;
  const BlockOffset at = slots[lane];
  const float scale = cache.scale == nullptr ? 1.0f : *cache.scale_of(head);
  const char* from = nullptr;
  if (at.block >= 0) from = cache.block(at.block) + cache.offset_bytes(head, 0, at.offset, kBytes, divide_index);
  for (int64_t begin = 0; begin < head_size; begin += kPackedDims) {
    const int dims = static_cast<int>(head_size - begin < kPackedDims ? head_size - begin : kPackedDims);
    if (from != nullptr) {
#pragma unroll 8
      for (int dim = threadIdx.x / 32; dim < dims; dim += kWarps) {
        values.row(lane)[dim] = *reinterpret_cast<const Stored*>(from + (begin + dim) * cache.stride_row_bytes);
      }
    }
    __syncthreads();
    for (int task = threadIdx.x; task < kPackedTokens * (kPackedDims / kElements); task += kThreads) {
      const int token = task / (kPackedDims / kElements), dim = task % (kPackedDims / kElements) * kElements;
      if (dim >= dims || slots[token].block < 0) continue;
      Pack<Move::kCacheBytes> pack;
      if constexpr (kElements == 1) {
        pack.words[0] = values.row(token)[dim];
      } else {
#pragma unroll
        for (int i = 0; i < Move::kCacheBytes / 4; ++i) pack.words[i] = values.words[token][dim * kBytes / 4 + i];
      }
      char* to = dst.head(first + token, head) + (begin + dim) / kElements * Move::kOutputBytes;
      Move::write(to, Move::value_of(pack, scale), cache.codec.element);
    }
    __syncthreads();
  }
}

// Gathers keys and values of packed caches. Stored is the unsigned integer that is as wide as an element of the cache.
//
//   blockIdx   x: chunks of kPackedTokens tokens   y: heads, from first_head   z: keys, values
template <class Move, class Stored>
__global__ void __launch_bounds__(kThreads)
    gather_packed_kernel(const MULTIKV_GRID_CONSTANT HeadPlane key, const MULTIKV_GRID_CONSTANT HeadPlane value,
                         const MULTIKV_GRID_CONSTANT Sequences sequences, int64_t first_head) {
  __shared__ BlockOffset slots[kPackedTokens];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPackedTokens, head = first_head + blockIdx.y;
  if (threadIdx.x < kPackedTokens) {
    const int64_t remaining = sequences.num_tokens - first;
    const int count = static_cast<int>(remaining < kPackedTokens ? remaining : kPackedTokens);
    slots[threadIdx.x] = look_up(sequences, WarpTokens{first, count}, first + threadIdx.x, threadIdx.x);
  }
  __syncthreads();
  if (blockIdx.z == 0) gather_packed_keys<Move>(key, slots, first, head);
  else gather_packed_values<Move, Stored>(value, slots, first, head);
}

template <class Move, class Stored>
cudaError_t launch_packed_moves(const GatherKvCacheParams& p, const Context& context) {
  const HeadPlane key(p.key, Move::kCacheBytes), value(p.value, Move::kCacheBytes);
  const BlockShape shape = {dim3(kThreads), p.key.num_heads};
  for_each_grid(ceil_div<int64_t>(p.sequences.num_tokens, kPackedTokens), shape, 2, [&](dim3 grid, int64_t first_head) {
    gather_packed_kernel<Move, Stored><<<grid, kThreads, 0, context.stream>>>(key, value, p.sequences, first_head);
  });
  return cudaGetLastError();
}

// The vectors of values are contiguous only in the output, so the alignment of the value cache does not matter.
inline cudaError_t launch_packed(const GatherKvCacheParams& p, const Context& context) {
  const AlignmentBits key = cache_alignment_bits(p.key),
                      dst = p.key.dst.alignment_bits() | p.value.dst.alignment_bits();
  if (!p.codec().is_float()) {
    const bool is_wide = key.widest(8) == 8 && dst.widest(16) == 16;
    return with_dtype(p.dtype, [&]<Float kDtype>() {
      return is_wide ? launch_packed_moves<DequantiseVector<kDtype, 8>, uint8_t>(p, context)
                     : launch_packed_moves<DequantiseVector<kDtype, 1>, uint8_t>(p, context);
    });
  }
  const bool is_wide = (key | dst).widest(16) == 16;
  if (num_bytes(p.dtype) == 4) {
    return is_wide ? launch_packed_moves<CopyVector<16>, uint32_t>(p, context)
                   : launch_packed_moves<CopyVector<4>, uint32_t>(p, context);
  }
  return is_wide ? launch_packed_moves<CopyVector<16>, uint16_t>(p, context)
                 : launch_packed_moves<CopyVector<2>, uint16_t>(p, context);
}

}  // namespace multikv::gpu
