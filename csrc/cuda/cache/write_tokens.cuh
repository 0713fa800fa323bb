// Writing the vectors of tokens to the slots of a cache.
#pragma once

#include "cuda/cache/slots.cuh"
#include "cuda/cache/vector_move.cuh"
#include "cuda/core/grid.h"

namespace multikv::gpu {

constexpr int kMaxRows = 64;  // tokens side by side in a thread block, in dimension z

// Where one vector of token 0 is read, and where it is written in slot 0.
struct VectorPointers {
  const char* source;
  char* cache;
  int64_t source_stride_token_bytes;
};

// The cache, or the part of it, that tokens are written to.
struct TokenDestination {
  int64_t num_tokens;
  SlotOffsets slots;
  const float* scale;
  Element element;
};

// A thread block writes a chunk of tokens; this is one thread's part of it: the tokens first + row, first + row + rows,
// ... (kUnroll of them; token `first` exists), and of each of them the vectors vector, vector + vector_step, ... below
// num_vectors.
struct ChunkPart {
  int64_t first;
  int row, rows;
  int64_t vector, vector_step;
  int64_t num_vectors = 0;
};

__device__ inline int thread_of_block() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

// Moves the vectors of one token, with the shortest chain of dependent instructions from load to store.
template <VectorMove Move, bool kOnce, class IndexOf, class PointersOf>
__device__ __forceinline__ void write_one_token(const TokenDestination& to, const ChunkPart& part, IndexOf index_of,
                                                PointersOf pointers_of) {
  const typename Move::Scale scale = Move::scale(to.scale);
  const int64_t token = part.first + part.row;
  int64_t vector = part.vector;
  if (token >= to.num_tokens || vector >= part.num_vectors) return;
  const auto index = index_of(token);
  const auto read = [&](const VectorPointers& pointers) {
    return Move::Source::template read<kOnce>(pointers.source + token * pointers.source_stride_token_bytes);
  };
  const VectorPointers first = pointers_of(vector);
  const auto value = read(first);
  const int64_t offset = to.slots.of(index.value());
  if (offset < 0) return;
  const Move move(scale, to.element);
  move(value).template write<kOnce>(first.cache + offset);
  while ((vector += part.vector_step) < part.num_vectors) {
    const VectorPointers next = pointers_of(vector);
    move(read(next)).template write<kOnce>(next.cache + offset);
  }
}

// Moves the vectors of kUnroll tokens, all of which are loaded before the first is written. The offsets of the slots
// are computed once for all vectors of a token and kept in shared memory.
template <VectorMove Move, int kUnroll, bool kOnce, class IndexOf, class PointersOf>
__device__ __forceinline__ void write_several_tokens(const TokenDestination& to, const ChunkPart& part,
                                                     IndexOf index_of, PointersOf pointers_of) {
  __shared__ int64_t offsets[kUnroll * kMaxRows];
  const typename Move::Scale scale = Move::scale(to.scale);
  const int64_t rest = to.num_tokens - part.first;
  const int chunk = kUnroll * part.rows, num_tokens = static_cast<int>(rest < chunk ? rest : chunk);
  const int thread = thread_of_block(), num_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  const auto index = index_of(part.first + (thread < num_tokens ? thread : 0));
  typename Move::Source values[kUnroll];
  const auto read = [&](int64_t vector) {
    const VectorPointers pointers = pointers_of(vector);
    const char* from = pointers.source + (part.first + part.row) * pointers.source_stride_token_bytes;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (part.row + i * part.rows < num_tokens) values[i] = Move::Source::template read<kOnce>(from);
      from += part.rows * pointers.source_stride_token_bytes;
    }
  };
  int64_t vector = part.vector;
  if (vector < part.num_vectors) read(vector);
  if (thread < chunk) offsets[thread] = thread < num_tokens ? to.slots.of(index.value()) : -1;
  for (int token = thread + num_threads; token < chunk; token += num_threads) {
    offsets[token] = token < num_tokens ? to.slots.of(index_of(part.first + token).value()) : -1;
  }
  __syncthreads();
  const Move move(scale, to.element);
  while (vector < part.num_vectors) {
    char* cache = pointers_of(vector).cache;
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t offset = offsets[part.row + i * part.rows];
      if (offset >= 0) move(values[i]).template write<kOnce>(cache + offset);
    }
    vector += part.vector_step;
    if (vector < part.num_vectors) read(vector);
  }
}

// Moves a thread's part of a chunk. All threads of the block must call. index_of(token) returns the prefetched index of
// the token's slot, pointers_of(vector) the VectorPointers.
template <VectorMove Move, int kUnroll, bool kOnce = false, class IndexOf, class PointersOf>
__device__ __forceinline__ void write_tokens(const TokenDestination& to, const ChunkPart& part, IndexOf index_of,
                                             PointersOf pointers_of) {
  if constexpr (kUnroll == 1) write_one_token<Move, kOnce>(to, part, index_of, pointers_of);
  else write_several_tokens<Move, kUnroll, kOnce>(to, part, index_of, pointers_of);
}

// Calls launch<kUnroll>() with the number of tokens for each thread: one, for the shortest chain from load to store,
// unless these would more than fill the GPU; then several. `copies` threads of a block's shape work on each token and
// row.
template <class Move, class Launch>
void launch_moves(int64_t num_tokens, int64_t copies, const Context& context, const BlockShape& shape, Launch launch) {
  if (num_tokens / shape.threads.z * shape.row_blocks * copies <= 16 * context.num_multiprocessors) {
    launch.template operator()<1>();
  } else {
    launch.template operator()<Move::kUnroll>();
  }
}

}  // namespace multikv::gpu
