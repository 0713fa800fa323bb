// The moves of one vector to a cache by one thread: a copy, or a quantisation.
#pragma once

#include <concepts>

#include "cuda/core/fp8_convert.cuh"
#include "cuda/launch.h"

namespace multikv::gpu {

// A move copies or converts one vector on its way to a cache. Only templates of device code are constrained by
// VectorMove, because HIP's host compilation cannot name the __device__ functions of a move.
template <class Move>
concept VectorMove = requires(const Move& move, const typename Move::Source& source, const typename Move::Scale& loaded,
                              const float* scale, Element element) {
  // The bytes of a vector in the source and in the cache: powers of two.
  { Move::kSourceBytes } -> std::same_as<const int&>;
  { Move::kCacheBytes } -> std::same_as<const int&>;
  // The number of vectors that a thread has in flight if there are many tokens: just enough to hide the latency of
  // memory.
  { Move::kUnroll } -> std::same_as<const int&>;
  // The same move in the narrowest vectors (one element, or a copy of 2 bytes), for a cache that is not aligned to
  // kCacheBytes.
  typename Move::Narrow;
  // A vector as it is read from the source.
  requires std::same_as<typename Move::Source, Pack<Move::kSourceBytes>>;
  // Issues the load of the scale, which the constructor consumes, so that it overlaps with the load of the vector.
  { Move::scale(scale) } -> std::same_as<typename Move::Scale>;
  // Constructs a move that quantises with this scale to elements of this type.
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

// Divides kElements floats by the scale, and encodes the quotients as fp8.
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
    return quantise<kDtype, kElements>(source.words, element, [&](float x) { return divide(quotient, x); });
  }
};
static_assert(VectorMove<Quantise<Float::kFloat16, 8>>);

// The number of vectors in `source_bytes` bytes of the source. source_bytes must be a multiple of Move::kSourceBytes.
template <class Move>
__host__ __device__ constexpr int64_t num_vectors(int64_t source_bytes) {
  return static_cast<int64_t>(static_cast<uint64_t>(source_bytes) / Move::kSourceBytes);
}

// Calls with<Move>() for the move from elements of type `dtype` to elements of the codec. source_width and cache_width
// are the bytes, up to 16, of the widest accesses that the alignment of source and cache allows.
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
