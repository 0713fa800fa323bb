// Writing tokens to a cache: how a vector is moved and converted, and where it goes.
#pragma once

#include "grid.h"
#include "launch.h"
#include "slots.cuh"
#include "vec.cuh"

namespace multikv::gpu {

// What a thread reads before it writes: enough in flight to cover the latency of memory.
constexpr int kBytesInFlight = 64;

// How one thread's vector gets from the source to the cache: kSourceBytes in, kCacheBytes out. What it needs beside the vector
// (`Scale`) is loaded with it, and used when both are there. Narrow: the same, element by element.
template <int kWidth>
struct Copy {
  static constexpr int kSourceBytes = kWidth, kCacheBytes = kWidth;
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

// One vector of every token: where it is read and where it is written. All in bytes.
struct Lane {
  const char* source;
  char* cache;
  int64_t source_stride_token, cache_stride_block, cache_stride_slot;
};

// Moves the lane's vectors of the tokens first, first + step, ...: kUnroll of them, all in flight before the first is written.
// index_of(token): its slot, or -1.
template <class Move, int kUnroll, class IndexOf>
__device__ inline void write_tokens(const Slots& slots, IndexOf index_of, int64_t first, int64_t step, const Lane& lane,
                                    const float* scale, CacheFormat format) {
  const typename Move::Scale loaded_scale = Move::scale(scale);
  typename Move::Source values[kUnroll];
  int64_t token_slots[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int64_t token = first + i * step;
    token_slots[i] = -1;
    if (token < slots.num_tokens) {
      token_slots[i] = index_of(token);
      values[i] = Move::Source::read(lane.source + token * lane.source_stride_token);
    }
  }
  const Move move(loaded_scale, format);
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int64_t offset = slot_offset(slots, token_slots[i], lane.cache_stride_block, lane.cache_stride_slot);
    if (offset >= 0) move(values[i]).write(lane.cache + offset);
  }
}

// Calls with<Short, Long>() with the moves for such inputs: Short, a vector that is soon read and written, for few tokens, and
// Long for many. The widths: the widest accesses that suit source and cache.
template <class With>
void with_moves(Float dtype, CacheFormat format, int source_width, int cache_width, With with) {
  const auto quantise = [&]<Float kDtype>() {
    if (source_width == 16 && cache_width == 16) with.template operator()<Quantise<kDtype, 8>, Quantise<kDtype, 16>>();
    else with.template operator()<Quantise<kDtype, 1>, Quantise<kDtype, 1>>();
  };
  if (format != CacheFormat::kSame) return with_dtype(dtype, quantise);
  switch (std::min(source_width, cache_width)) {
    case 16: return with.template operator()<Copy<16>, Copy<16>>();
    case 8: return with.template operator()<Copy<8>, Copy<8>>();
    case 4: return with.template operator()<Copy<4>, Copy<4>>();
    default: return with.template operator()<Copy<2>, Copy<2>>();
  }
}

// Calls launch<Move, kUnroll>(shape): Short vectors, one token each, for a short chain from load to store, unless they would
// more than fill the GPU; then Long vectors of several tokens. shape_for(bytes of a vector) gives a block's threads, of which
// `copies` work on each token and row.
template <class Short, class Long, class ShapeFor, class Launch>
void launch_moves(int64_t num_tokens, int64_t copies, const Context& context, ShapeFor shape_for, Launch launch) {
  constexpr int kUnroll = Long::kSourceBytes < 16 ? 4 : kBytesInFlight / Long::kSourceBytes;
  const BlockShape shape = shape_for(Short::kSourceBytes);
  if (num_tokens / shape.threads.z * shape.row_blocks * copies <= 8 * context.num_multiprocessors) {
    launch.template operator()<Short, 1>(shape);
  } else {
    launch.template operator()<Long, kUnroll>(shape_for(Long::kSourceBytes));
  }
}

}  // namespace multikv::gpu
