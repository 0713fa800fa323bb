// How one thread moves one vector to a cache: as a copy, or quantised.
#pragma once

#include <concepts>

#include "cuda/core/fp8_convert.cuh"
#include "cuda/launch.h"

namespace multikv::gpu {

// Constrains templates of device code only: on HIP the host cannot name a move's functions.
template <class Move>
concept VectorMove = requires(const Move& move, const typename Move::Source& source, const typename Move::Scale& loaded,
                              const float* scale, Element element) {
  // The sizes of a vector before and after the move, powers of two.
  { Move::kSourceBytes } -> std::same_as<const int&>;
  { Move::kCacheBytes } -> std::same_as<const int&>;
  // The number of vectors that a thread reads before it writes the first, where there are many tokens: just enough to
  // hide the latency of memory.
  { Move::kUnroll } -> std::same_as<const int&>;
  // The same move, element by element.
  typename Move::Narrow;
  // A vector before the move.
  requires std::same_as<typename Move::Source, Pack<Move::kSourceBytes>>;
  // Loads what a move needs beside the vector. The load is issued with that of the vector, and consumed after it.
  { Move::scale(scale) } -> std::same_as<typename Move::Scale>;
  // A move to a cache of such elements.
  Move(loaded, element);
  // Converts a vector.
  { move(source) } -> std::same_as<Pack<Move::kCacheBytes>>;
};

// Copies kWidth bytes.
template <int kWidth>
struct Copy {
  static constexpr int kSourceBytes = kWidth, kCacheBytes = kWidth, kUnroll = kWidth < 16 ? 4 : 2;
  using Narrow = Copy<2>;
  using Source = Pack<kWidth>;
  struct Scale {};
  __device__ static Scale scale(const float*) { return {}; }
  __device__ Copy(Scale, Element) {}
  __device__ Pack<kWidth> operator()(const Source& source) const { return source; }
};
static_assert(VectorMove<Copy<16>>);

// Encodes kElements floats as fp8.
template <Float kDtype, int kElements>
struct Quantise {
  static constexpr int kSourceBytes = kElements * static_cast<int>(num_bytes(kDtype)), kCacheBytes = kElements;
  static constexpr int kUnroll = kSourceBytes > 16 ? 2 : 4;
  using Narrow = Quantise<kDtype, 1>;
  using Source = Pack<kSourceBytes>;
  using Scale = float;
  Quotient quotient;
  Element element;

  __device__ static Scale scale(const float* scale) { return scale == nullptr ? 1.0f : *scale; }
  __device__ Quantise(Scale scale, Element element) : quotient(scale), element(element) {}
  __device__ Pack<kElements> operator()(const Source& source) const {
    return quantise<kDtype, kElements>(source.words, element, [&](float x) { return divide<kDtype>(quotient, x); });
  }
};
static_assert(VectorMove<Quantise<Float::kFloat16, 8>>);

// The number of vectors in so many bytes of the source, which vectors divide.
template <class Move>
__host__ __device__ constexpr int64_t num_vectors(int64_t source_bytes) {
  return static_cast<int64_t>(static_cast<uint64_t>(source_bytes) / Move::kSourceBytes);
}

// Calls with<Move>() with the move from elements of type `dtype` to the codec's. The widths: the widest accesses, up to
// 16 bytes, that the alignment of source and cache allows.
template <class With>
void with_moves(Float dtype, const Codec& codec, int source_width, int cache_width, With with) {
  const auto quantise = [&]<Float kDtype>() {
    if (source_width == 16 && cache_width >= 8) with.template operator()<Quantise<kDtype, 8>>();
    else with.template operator()<Quantise<kDtype, 1>>();
  };
  if (!codec.is_float()) return with_dtype(dtype, quantise);
  const int width = source_width < cache_width ? source_width : cache_width;
  if (width == 16) with.template operator()<Copy<16>>();
  else if (width == 8) with.template operator()<Copy<8>>();
  else if (width == 4) with.template operator()<Copy<4>>();
  else with.template operator()<Copy<2>>();
}

}  // namespace multikv::gpu
