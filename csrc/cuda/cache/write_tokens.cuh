// Writing tokens to a cache: how a vector is moved and converted, and where it goes.
#pragma once

#include "cuda/cache/slots.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/vec.cuh"
#include "cuda/launch.h"

namespace multikv::gpu {

constexpr int kMaxRows = 64;  // of a thread block, in the dimension z

// How one thread's vector gets from the source to the cache: kSourceBytes in, kCacheBytes out. kUnroll: how many of
// them a thread reads before it writes, if there are many: no more than it takes to hide the latency of memory. What it
// needs beside the vector (`Scale`) is loaded with it, and used when both are there. Narrow: the same, element by
// element.
template <int kWidth>
struct Copy {
  static constexpr int kSourceBytes = kWidth, kCacheBytes = kWidth, kUnroll = kWidth < 16 ? 4 : 2;
  using Narrow = Copy<2>;
  using Source = Pack<kWidth>;
  struct Scale {};
  __device__ static Scale scale(const float*) { return {}; }
  __device__ Copy(Scale, CacheFormat) {}
  __device__ Pack<kWidth> operator()(const Source& source) const { return source; }
};

template <Float kDtype, int kElements>
struct Quantise {
  static constexpr int kSourceBytes = kElements * static_cast<int>(num_bytes(kDtype)), kCacheBytes = kElements;
  static constexpr int kUnroll = kSourceBytes > 16 ? 2 : 4;
  using Narrow = Quantise<kDtype, 1>;
  using Source = Pack<kSourceBytes>;
  using Scale = float;
  Quotient quotient;
  CacheFormat format;

  __device__ static Scale scale(const float* scale) { return scale == nullptr ? 1.0f : *scale; }
  __device__ Quantise(Scale scale, CacheFormat format) : quotient(scale), format(format) {}
  __device__ Pack<kElements> operator()(const Source& source) const {
    return quantise<kDtype, kElements>(source.words, format, [&](float x) { return divide<kDtype>(quotient, x); });
  }
};

// One vector of every token: where it is read, and where it is written within the token's entry.
struct Lane {
  const char* source;
  char* cache;
  int64_t source_stride_token;  // bytes
};

// Of the cache, in bytes.
struct SlotStrides {
  int64_t block, slot;
};

// The part of a thread in a tile of tokens that a thread block writes: tokens first + row, first + row + rows, ...
// (kUnroll of them; there is a token `first`), and of each the vectors vector, vector + vector_step, ... below
// num_vectors.
struct TilePart {
  int64_t first;
  int row, rows;
  int64_t vector, vector_step, num_vectors;
};

__device__ inline int thread_of_block() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}

// Moves the tile's vectors. All threads of the block must call. index_of(token): its slot, or -1, on its way;
// lane_of(vector): its Lane.
template <class Move, int kUnroll, bool kOnce = false, class IndexOf, class LaneOf>
__device__ inline void write_tokens(const Slots& slots, IndexOf index_of, const TilePart& part, SlotStrides strides,
                                    LaneOf lane_of, const float* scale, CacheFormat format) {
  const typename Move::Scale loaded_scale = Move::scale(scale);
  const auto offset = [&](int64_t index) { return slot_offset(slots, index, strides.block, strides.slot); };
  if constexpr (kUnroll == 1) {  // the shortest way from load to store
    const int64_t token = part.first + part.row;
    int64_t vector = part.vector;
    if (token >= slots.num_tokens || vector >= part.num_vectors) return;
    const auto index = index_of(token);
    const auto read = [&](const Lane& lane) {
      return Move::Source::template read<kOnce>(lane.source + token * lane.source_stride_token);
    };
    const Lane lane = lane_of(vector);
    const auto value = read(lane);
    const int64_t to = offset(index.value());
    if (to < 0) return;
    const Move move(loaded_scale, format);
    move(value).template write<kOnce>(lane.cache + to);
    while ((vector += part.vector_step) < part.num_vectors) {
      const Lane next = lane_of(vector);
      move(read(next)).template write<kOnce>(next.cache + to);
    }
  } else {
    // kUnroll vectors are in flight before the first is written. Where tokens go is computed once for all their
    // vectors.
    __shared__ int64_t offsets[kUnroll * kMaxRows];
    const int64_t rest = slots.num_tokens - part.first;
    const int tile = kUnroll * part.rows, num_tokens = static_cast<int>(rest < tile ? rest : tile);
    const int thread = thread_of_block(), num_threads = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
    const auto index = index_of(part.first + (thread < num_tokens ? thread : 0));
    typename Move::Source values[kUnroll];
    char* cache = nullptr;
    const auto read = [&](int64_t vector) {
      const Lane lane = lane_of(vector);
      const char* from = lane.source + (part.first + part.row) * lane.source_stride_token;
      cache = lane.cache;
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        if (part.row + i * part.rows < num_tokens) values[i] = Move::Source::template read<kOnce>(from);
        from += part.rows * lane.source_stride_token;
      }
    };
    int64_t vector = part.vector;
    if (vector < part.num_vectors) read(vector);
    if (thread < tile) offsets[thread] = thread < num_tokens ? offset(index.value()) : -1;
    for (int token = thread + num_threads; token < tile; token += num_threads) {
      offsets[token] = token < num_tokens ? offset(index_of(part.first + token).value()) : -1;
    }
    __syncthreads();
    const Move move(loaded_scale, format);
    while (vector < part.num_vectors) {
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int64_t to = offsets[part.row + i * part.rows];
        if (to >= 0) move(values[i]).template write<kOnce>(cache + to);
      }
      vector += part.vector_step;
      if (vector < part.num_vectors) read(vector);
    }
  }
}

// Calls with<Move>() with the move for such inputs. The widths: the widest accesses that suit source and cache.
template <class With>
void with_moves(Float dtype, CacheFormat format, int source_width, int cache_width, With with) {
  const auto quantise = [&]<Float kDtype>() {
    if (source_width == 16 && cache_width >= 8) with.template operator()<Quantise<kDtype, 8>>();
    else with.template operator()<Quantise<kDtype, 1>>();
  };
  if (format != CacheFormat::kSame) return with_dtype(dtype, quantise);
  switch (std::min(source_width, cache_width)) {
    case 16: return with.template operator()<Copy<16>>();
    case 8: return with.template operator()<Copy<8>>();
    case 4: return with.template operator()<Copy<4>>();
    default: return with.template operator()<Copy<2>>();
  }
}

// Calls launch<kUnroll>(): one token for each thread, for a short chain from load to store, unless these would more
// than fill the GPU; then several. `copies` threads of a block's shape work on each token and row.
template <class Move, class Launch>
void launch_moves(int64_t num_tokens, int64_t copies, const Context& context, const BlockShape& shape, Launch launch) {
  if (num_tokens / shape.threads.z * shape.row_blocks * copies <= 16 * context.num_multiprocessors) {
    launch.template operator()<1>();
  } else {
    launch.template operator()<Move::kUnroll>();
  }
}

}  // namespace multikv::gpu
