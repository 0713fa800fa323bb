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
// entries[token] is the offset in bytes at which the head of a token starts in the cache, or negative. It is not a
// pointer, because the compiler could not tell whether a pointer that it loads from shared memory points to global or
// to shared memory, and loads through it would also wait for accesses of shared memory.
template <GatherMove Move>
__device__ __forceinline__ void gather_packed_keys(const HeadPlane& plane, const Divisor& piece_vectors,
                                                   const int64_t* entries, int64_t first, int64_t head) {
  constexpr int kNear = 4, kTokenStep = 32 / kNear, kVectorStep = kThreads / kTokenStep;
  const PackedCache& cache = plane.gather.cache;
  const int lane = threadIdx.x % 32, token = lane / kNear;
  const float scale = Move::kIsScaled ? *cache.scale_of(head) : 1.0f;
  const int64_t stride_token_bytes = plane.gather.dst.stride_token_bytes;
  char* const dst = plane.gather.dst.head(first + token, head);
  int64_t vector = threadIdx.x / 32 * kNear + lane % kNear;
  for (; vector < plane.head_vectors.signed_value(); vector += kVectorStep) {
    const auto piece = static_cast<int64_t>(quotient_of(vector, piece_vectors));
    const int64_t in_piece = vector - piece * piece_vectors.signed_value();
    const int64_t offset = piece * cache.stride_vector_bytes + in_piece * Move::kCacheBytes;
    Pack<Move::kCacheBytes> values[kPackedTokens / kTokenStep];
#pragma unroll
    for (int i = 0; i < kPackedTokens / kTokenStep; ++i) {
      const int64_t entry = entries[token + i * kTokenStep];
      if (entry >= 0) values[i] = Pack<Move::kCacheBytes>::template read<true>(cache.data + entry + offset);
    }
#pragma unroll
    for (int i = 0; i < kPackedTokens / kTokenStep; ++i) {
      if (entries[token + i * kTokenStep] < 0) continue;
      char* to = dst + i * kTokenStep * stride_token_bytes + vector * Move::kOutputBytes;
      Move::write(to, values[i], scale, cache.codec.element);
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
// contiguous within a group of vector_size slots; afterwards, neighbouring threads write neighbouring vectors of a
// token.
template <GatherMove Move, class Stored>
__device__ __forceinline__ void gather_packed_values(const HeadPlane& plane, const int64_t* entries, int64_t first,
                                                     int64_t head) {
  constexpr int kBytes = sizeof(Stored), kElements = Move::kCacheBytes / kBytes, kWarps = kThreads / 32;
  __shared__ GatheredValues<Stored> values;
  const auto& [cache, packs_slots, dst, num_heads, head_size] = plane.gather;
  const int lane = threadIdx.x % 32;
  const float scale = Move::kIsScaled ? *cache.scale_of(head) : 1.0f;
  const int64_t entry = entries[lane];
  const char* const from = cache.data + entry;
  for (int64_t begin = 0; begin < head_size; begin += kPackedDims) {
    const int dims = static_cast<int>(head_size - begin < kPackedDims ? head_size - begin : kPackedDims);
    if (entry >= 0) {
#pragma unroll 8
      for (int dim = threadIdx.x / 32; dim < dims; dim += kWarps) {
        values.row(lane)[dim] = *reinterpret_cast<const Stored*>(from + (begin + dim) * cache.stride_row_bytes);
      }
    }
    __syncthreads();
    for (int task = threadIdx.x; task < kPackedTokens * (kPackedDims / kElements); task += kThreads) {
      const int token = task / (kPackedDims / kElements), dim = task % (kPackedDims / kElements) * kElements;
      if (dim >= dims || entries[token] < 0) continue;
      Pack<Move::kCacheBytes> pack;
      if constexpr (kElements == 1) {
        pack.words[0] = values.row(token)[dim];
      } else {
#pragma unroll
        for (int i = 0; i < Move::kCacheBytes / 4; ++i) pack.words[i] = values.words[token][dim * kBytes / 4 + i];
      }
      char* to = dst.head(first + token, head) + (begin + dim) / kElements * Move::kOutputBytes;
      Move::write(to, pack, scale, cache.codec.element);
    }
    __syncthreads();
  }
}

// Gathers keys and values of packed caches. Stored is the unsigned integer that is as wide as an element of the cache.
//
// A piece is one vector of the key cache: vector_size elements. A thread moves Move::kCacheBytes bytes of it at a time,
// and piece_vectors such moves cover a piece.
//
//   blockIdx   x: chunks of kPackedTokens tokens   y: heads, from first_head   z: keys, values
template <GatherMove Move, class Stored>
__global__ void __launch_bounds__(kThreads)
    gather_packed_kernel(const MULTIKV_GRID_CONSTANT HeadPlane key, const MULTIKV_GRID_CONSTANT HeadPlane value,
                         const MULTIKV_GRID_CONSTANT Divisor piece_vectors,
                         const MULTIKV_GRID_CONSTANT Sequences sequences, int64_t first_head) {
  static_assert(kPackedTokens == 32, "one warp looks up all tokens");
  __shared__ int64_t entries[kPackedTokens];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPackedTokens, head = first_head + blockIdx.y;
  if (threadIdx.x < kPackedTokens) {
    const int64_t remaining = sequences.num_tokens - first;
    const int count = static_cast<int>(remaining < kPackedTokens ? remaining : kPackedTokens);
    const int lane = threadIdx.x;
    const BlockOffset at = look_up(sequences, WarpTokens{first, count, lane}, lane);
    const auto start_in = [&](const PackedCache& cache, int64_t row, int64_t packed) {
      return at.block * cache.stride_block_bytes + cache.offset_bytes(head, row, packed, sizeof(Stored), divide_index);
    };
    if (at.block < 0) entries[lane] = -1;
    else if (blockIdx.z == 0) entries[lane] = start_in(key.gather.cache, at.offset, 0);
    else entries[lane] = start_in(value.gather.cache, 0, at.offset);
  }
  __syncthreads();
  if (blockIdx.z == 0) gather_packed_keys<Move>(key, piece_vectors, entries, first, head);
  else gather_packed_values<Move, Stored>(value, entries, first, head);
}

template <GatherMove Move, class Stored>
cudaError_t launch_packed_moves(const GatherKvCacheParams& p, const Context& context) {
  const HeadPlane key(p.key, Move::kCacheBytes), value(p.value, Move::kCacheBytes);
  const Divisor piece_vectors = vectors_of(p.key, p.key.cache.vector_size.signed_value(), Move::kCacheBytes);
  const BlockShape shape = {dim3(1), p.key.num_heads};
  for_each_grid(ceil_div<int64_t>(p.sequences.num_tokens, kPackedTokens), shape, 2, [&](dim3 grid, int64_t first_head) {
    gather_packed_kernel<Move, Stored>
        <<<grid, kThreads, 0, context.stream>>>(key, value, piece_vectors, p.sequences, first_head);
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
