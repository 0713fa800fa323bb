// Quantises tiles: groups of elements with one scale, which the largest magnitude of the elements determines.
#pragma once

#include <concepts>

#include "core/tile_scale.h"
#include "cuda/core/fp8_convert.cuh"

namespace multikv::gpu {

// A type that computes the scale of a tile, and what the cache stores for it.
template <class Scaling>
concept TileScaling = requires(const Scaling& scaling, float x) {
  // The fp8 type of the codes.
  { scaling.element } -> std::same_as<const Element&>;
  // Whether every scale is a power of two.
  { scaling.is_power_of_two() } -> std::same_as<bool>;
  // The scale of a tile whose largest magnitude is x.
  { scaling.scale_of(x) } -> std::same_as<float>;
  // The four bytes that the cache holds for the scale x.
  { scaling.stored(x) } -> std::same_as<uint32_t>;
};

// A lane's number among `count` neighbouring lanes of a warp that share a tile; count is a power of two.
struct GroupLane {
  int lane, count;
};

// The addresses that a tile is written to. If codes is nullptr, the tile is skipped.
struct TilePointers {
  char* codes;
  char* scale;  // four bytes
};

// Returns the largest of `amax` and the magnitudes of kCount elements. fmaxf ignores NaN, and so does this function.
template <Float kDtype, int kCount>
__device__ inline float amax_of(const uint32_t* words, float amax) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) amax = fmaxf(amax, fabsf(element<kDtype>(words, i)));
  return amax;
}

// The number of a tile's vectors that each lane keeps in registers. Most tiles are small enough to be kept whole; of a
// larger tile, the vectors that are not kept are read twice.
constexpr int kTileVectors = 2;

// Quantises a tile of `size` elements. The `lanes.count` lanes of a group share the tile, and take turns over its
// vectors of kElements. All lanes of the warp must call; a group without a tile passes source == nullptr. pointers_of()
// is called after the loads of the first kTileVectors vectors of each lane are issued.
template <Float kDtype, int kElements, bool kOnce, TileScaling Scaling, class PointersOf>
__device__ inline void quantise_tile(const char* source, int64_t size, GroupLane lanes, const Scaling& scaling,
                                     PointersOf pointers_of) {
  constexpr int kSourceBytes = kElements * static_cast<int>(num_bytes(kDtype));
  using Source = Pack<kSourceBytes>;
  const int lane = lanes.lane, count = lanes.count;
  const int vectors = source == nullptr ? 0 : static_cast<int>(size / kElements);
  const auto read = [&](int i) {
    return Source::template read<kOnce>(source + static_cast<int64_t>(i) * kSourceBytes);
  };
  Source held[kTileVectors];
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) held[v] = lane + v * count < vectors ? read(lane + v * count) : Source{};
  float amax = 0.0f;
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) amax = amax_of<kDtype, kElements>(held[v].words, amax);
  for (int i = lane + kTileVectors * count; i < vectors; i += count)
    amax = amax_of<kDtype, kElements>(read(i).words, amax);
  for (int mask = count / 2; mask > 0; mask /= 2) amax = fmaxf(amax, shuffle_xor(amax, mask));

  const TilePointers to = pointers_of();
  if (to.codes == nullptr) return;
  const float scale = scaling.scale_of(amax);
  if (lane == 0) store_word(to.scale, scaling.stored(scale));
  const auto write = [&](auto by_scale) {
    const auto write_vector = [&](const Source& from, int i) {
      quantise<kDtype, kElements>(from.words, scaling.element, by_scale)
          .template write<kOnce>(to.codes + static_cast<int64_t>(i) * kElements);
    };
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      if (lane + v * count < vectors) write_vector(held[v], lane + v * count);
    }
    for (int i = lane + kTileVectors * count; i < vectors; i += count) write_vector(read(i), i);
  };
  if (scaling.is_power_of_two()) {
    // The product with 2^-e is exactly the quotient by 2^e. The exponent field of 2^e is 127 + e, that of 2^-e is
    // 254 - (127 + e), and 0x7f000000 is 254 in the exponent field.
    write([factor = __uint_as_float(0x7f000000u - __float_as_uint(scale))](float x) { return x * factor; });
  } else {
    write([quotient = Quotient(scale)](float x) { return divide(quotient, x); });
  }
}

}  // namespace multikv::gpu
