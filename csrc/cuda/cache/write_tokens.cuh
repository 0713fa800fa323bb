// Writes the vectors of tokens to the slots of a cache.
#pragma once

#include "cuda/cache/slots.cuh"
#include "cuda/cache/vector_move.cuh"
#include "cuda/core/grid.h"

namespace multikv::gpu {

constexpr int kMaxTokenStep = 64;  // the largest ChunkPart::token_step; CUDA's limit of blockDim.z

// The addresses of one vector of an entry: `source` points to the vector of token 0, `cache` to the vector of slot 0.
struct VectorPointers {
  const char* source;
  char* cache;
  int64_t source_stride_token_bytes;
};

// The cache, or the part of a cache (a head, say), that tokens are written to.
struct TokenDestination {
  int64_t num_tokens;
  SlotOffsets slots;
  const float* scale;
  Element element;
};

// One thread's part of a chunk. A chunk consists of the tokens that one thread block writes. Token `first_token` of the
// chunk exists; later tokens of the chunk may not.
//
//   tokens   first_token + token + k * token_step, for k < kUnroll
//   vectors  vector + k * vector_step, as far as they are below num_vectors
struct ChunkPart {
  int64_t first_token;
  int token, token_step;
  int64_t vector, vector_step;
  int64_t num_vectors = 0;
};

__device__ inline int thread_of_block() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

// Moves the vectors of one token, with the shortest chain of dependent instructions from load to store. The first
// vector is moved before the loop. In the loop, its load would come after the wait for the index, because the compiler
// hoists that wait out of the loop.
template <VectorMove Move, bool kOnce, class IndexOf, class PointersOf>
__device__ __forceinline__ void write_one_token(const TokenDestination& to, const ChunkPart& part, IndexOf index_of,
                                                PointersOf pointers_of) {
  const typename Move::Scale scale = Move::scale(to.scale);
  const int64_t token = part.first_token + part.token;
  int64_t vector = part.vector;
  if (token >= to.num_tokens || vector >= part.num_vectors) return;
  const auto index = index_of(token);
  const auto read = [&](const VectorPointers& pointers) {
    return Move::Source::template read<kOnce>(pointers.source + token * pointers.source_stride_token_bytes);
  };
  const VectorPointers first = pointers_of(vector);
  const auto value = read(first);
  const int64_t offset_bytes = to.slots.of(index.value());
  if (offset_bytes < 0) return;
  const Move move(scale, to.element);
  move(value).template write<kOnce>(first.cache + offset_bytes);
  while ((vector += part.vector_step) < part.num_vectors) {
    const VectorPointers next = pointers_of(vector);
    move(read(next)).template write<kOnce>(next.cache + offset_bytes);
  }
}

// Moves the vectors of kUnroll tokens. A thread loads one vector of each token before it writes the first. The offsets
// of the slots are computed once for all vectors of a token, and kept in shared memory.
template <VectorMove Move, int kUnroll, bool kOnce, class IndexOf, class PointersOf>
__device__ __forceinline__ void write_several_tokens(const TokenDestination& to, const ChunkPart& part,
                                                     IndexOf index_of, PointersOf pointers_of) {
  __shared__ int64_t offsets_bytes[kUnroll * kMaxTokenStep];
  const typename Move::Scale scale = Move::scale(to.scale);
  const int64_t remaining = to.num_tokens - part.first_token;
  const int chunk = kUnroll * part.token_step, num_tokens = static_cast<int>(remaining < chunk ? remaining : chunk);
  const int thread = thread_of_block(), num_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const auto index = index_of(part.first_token + (thread < num_tokens ? thread : 0));
  typename Move::Source values[kUnroll];
  const auto read = [&](int64_t vector) {
    const VectorPointers pointers = pointers_of(vector);
    const char* from = pointers.source + (part.first_token + part.token) * pointers.source_stride_token_bytes;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (part.token + i * part.token_step < num_tokens) values[i] = Move::Source::template read<kOnce>(from);
      from += part.token_step * pointers.source_stride_token_bytes;
    }
  };
  int64_t vector = part.vector;
  if (vector < part.num_vectors) read(vector);
  if (thread < chunk) offsets_bytes[thread] = thread < num_tokens ? to.slots.of(index.value()) : -1;
  for (int token = thread + num_threads; token < chunk; token += num_threads) {
    offsets_bytes[token] = token < num_tokens ? to.slots.of(index_of(part.first_token + token).value()) : -1;
  }
  __syncthreads();
  const Move move(scale, to.element);
  while (vector < part.num_vectors) {
    char* cache = pointers_of(vector).cache;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t offset_bytes = offsets_bytes[part.token + i * part.token_step];
      if (offset_bytes >= 0) move(values[i]).template write<kOnce>(cache + offset_bytes);
    }
    vector += part.vector_step;
    if (vector < part.num_vectors) read(vector);
  }
}

// Moves a thread's part of a chunk. All threads of the block must call. index_of(token) returns the prefetched index of
// the token's slot, pointers_of(vector) returns the VectorPointers.
template <VectorMove Move, int kUnroll, bool kOnce = false, class IndexOf, class PointersOf>
__device__ __forceinline__ void write_tokens(const TokenDestination& to, const ChunkPart& part, IndexOf index_of,
                                             PointersOf pointers_of) {
  if constexpr (kUnroll == 1) write_one_token<Move, kOnce>(to, part, index_of, pointers_of);
  else write_several_tokens<Move, kUnroll, kOnce>(to, part, index_of, pointers_of);
}

// Calls launch<kUnroll>() with the number of tokens for each thread: 1, for the shortest chain from load to store, if
// the grid then has at most 16 thread blocks per multiprocessor; else Move::kUnroll. `planes` is the number of caches
// that each token is written to (2: keys and values).
template <class Move, class Launch>
void launch_moves(int64_t num_tokens, int64_t planes, const Context& context, const BlockShape& shape, Launch launch) {
  if (num_tokens / shape.threads.z * shape.row_blocks * planes <= 16 * context.num_multiprocessors) {
    launch.template operator()<1>();
  } else {
    launch.template operator()<Move::kUnroll>();
  }
}

}  // namespace multikv::gpu
