// Writing keys to the packed layout: [blocks, heads, head_size / vector_size, block_size, vector_size].
#pragma once

#include "cuda/cache/write_tokens.cuh"
#include "params/reshape_and_cache_params.h"

namespace multikv::gpu {

// How the accessors of the packed caches divide.
__device__ inline int64_t divide_index(int64_t x, const Divisor& divisor) {
  return static_cast<int64_t>(quotient_of(x, divisor));
}

// Writes the keys of one head of kTokens tokens from `first` on; each vector of the source lies within one vector of
// the cache. Threads: first over four vectors of a token, because the memory of the source is read in sectors of at
// least 32 bytes; then over tokens, whose vectors are neighbours in the cache; then over further vectors.
template <VectorMove Move, int kElementBytes, int kTokens>
__device__ inline void write_packed_keys(const ReshapeAndCacheParams& p, int64_t head, int64_t first) {
  constexpr int kNear = 4, kVectorThreads = 16, kStep = kThreads / kVectorThreads, kUnroll = kTokens / kStep;
  const auto& [source, cache] = p.key;
  const ChunkPart part = {
      .first = first,
      .row = static_cast<int>(threadIdx.x / kNear % kStep),
      .rows = kStep,
      .vector = threadIdx.x / (kNear * kStep) * kNear + threadIdx.x % kNear,
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
