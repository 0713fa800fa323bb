// Writes keys to the packed layout: [blocks, heads, head_size / vector_size, block_size, vector_size].
#pragma once

#include "cuda/cache/write_tokens.cuh"
#include "params/reshape_and_cache_params.h"

namespace multikv::gpu {

// The division that the accessors of PackedCache take as an argument.
__device__ inline int64_t divide_index(int64_t x, const Divisor& divisor) {
  return static_cast<int64_t>(quotient_of(x, divisor));
}

// Writes the keys of one head of kTokens tokens from `first` on. A vector is what a Move moves at a time; it never
// crosses from one group of vector_size elements of the cache to the next. A warp covers 4 vectors of each of 8 tokens,
// as the picture shows. The 4 warps of the thread block cover 16 vectors of each of the same 8 tokens.
//
//   lane     0 1 2 3   4 5 6 7   ...   28 29 30 31
//   token    0 0 0 0   1 1 1 1   ...    7  7  7  7
//   vector   0 1 2 3   0 1 2 3   ...    0  1  2  3
//
// Four lanes read contiguous vectors of a token, because memory is read in sectors of at least 32 bytes. If the slots
// of the 8 tokens are neighbours in a block, the groups that hold the same elements of the 8 keys are contiguous in the
// cache. If a vector fills a group, the 8 lanes with the same vector number write 8 contiguous groups.
template <VectorMove Move, int kElementBytes, int kTokens>
__device__ inline void write_packed_keys(const ReshapeAndCacheParams& p, int64_t head, int64_t first) {
  constexpr int kNearVectors = 4, kVectorThreads = 16, kStep = kThreads / kVectorThreads, kUnroll = kTokens / kStep;
  const auto& [source, cache] = p.key;
  const ChunkPart part = {
      .first_token = first,
      .token = static_cast<int>(threadIdx.x / kNearVectors % kStep),
      .token_step = kStep,
      .vector = threadIdx.x / (kNearVectors * kStep) * kNearVectors + threadIdx.x % kNearVectors,
      .vector_step = kVectorThreads,
      .num_vectors = num_vectors<Move>(source.head_bytes),
  };
  const auto pointers_of = [&p, head](int64_t vector) -> VectorPointers {
    const int64_t dim = vector * (Move::kCacheBytes / kElementBytes);
    return {p.key.source.head(0, head) + vector * Move::kSourceBytes,
            p.key.cache.element({0, 0}, head, dim, kElementBytes, divide_index), p.key.source.stride_token_bytes};
  };
  const TokenDestination to = {p.slots.num_tokens,
                               {p.blocks(), cache.stride_block_bytes, cache.stride_row_bytes},
                               cache.scale_of(head),
                               cache.codec.element};
  const auto index_of = [&p](int64_t token) { return PrefetchedIndex(p.slots.mapping, token); };
  write_tokens<Move, kUnroll, true>(to, part, index_of, pointers_of);
}

}  // namespace multikv::gpu
