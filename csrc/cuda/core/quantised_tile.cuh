// Tiles: elements that share one scale, which comes from the largest of them.
#pragma once

#include "core/tile_scale.h"
#include "cuda/core/vec.cuh"

namespace multikv::gpu {

// The largest magnitude of kCount elements and `amax`. fmaxf ignores NaN.
template <Float kDtype, int kCount>
__device__ inline float amax_of(const uint32_t* words, float amax) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) amax = fmaxf(amax, fabsf(element<kDtype>(words, i)));
  return amax;
}

// Vectors of a tile that a lane keeps in registers.
constexpr int kTileVectors = 2;

// Where a tile goes. codes == nullptr: nowhere.
struct TilePlace {
  char* codes;
  char* scale;  // four bytes
};

// Quantises a tile of `size` elements: `lanes` neighbouring lanes of a group together (a power of two), each a vector
// of kElements after the other. All lanes of the group must call. source == nullptr: there is no tile. place_of() is
// asked for when all loads are on their way; scale_of(amax) gives the scale (always a power of two, or not),
// stored(scale) what is stored.
template <Float kDtype, int kElements, bool kOnce, class Place, class ScaleOf, class Stored>
__device__ inline void quantise_tile(const char* source, Place place_of, int64_t size, int lane, int lanes,
                                     CacheFormat format, bool is_power_of_two, ScaleOf scale_of, Stored stored) {
  constexpr int kSourceBytes = kElements * static_cast<int>(num_bytes(kDtype));
  using Source = Pack<kSourceBytes>;
  const int vectors = source == nullptr ? 0 : static_cast<int>(size / kElements);
  const auto read = [&](int i) {
    return Source::template read<kOnce>(source + static_cast<int64_t>(i) * kSourceBytes);
  };
  // Most tiles are kTileVectors for each lane: they stay in registers.
  Source held[kTileVectors];
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) held[v] = lane + v * lanes < vectors ? read(lane + v * lanes) : Source{};
  float amax = 0.0f;
#pragma unroll
  for (int v = 0; v < kTileVectors; ++v) amax = amax_of<kDtype, kElements>(held[v].words, amax);
  for (int i = lane + kTileVectors * lanes; i < vectors; i += lanes)
    amax = amax_of<kDtype, kElements>(read(i).words, amax);
  for (int mask = lanes / 2; mask > 0; mask /= 2) amax = fmaxf(amax, shuffle_xor(amax, mask));

  const TilePlace place = place_of();
  if (place.codes == nullptr) return;
  const float scale = scale_of(amax);
  if (lane == 0) store_word(place.scale, stored(scale));
  const auto write = [&](auto by_scale) {
    const auto write_vector = [&](const Source& from, int i) {
      quantise<kDtype, kElements>(from.words, format, by_scale)
          .template write<kOnce>(place.codes + static_cast<int64_t>(i) * kElements);
    };
#pragma unroll
    for (int v = 0; v < kTileVectors; ++v) {
      if (lane + v * lanes < vectors) write_vector(held[v], lane + v * lanes);
    }
    for (int i = lane + kTileVectors * lanes; i < vectors; i += lanes) write_vector(read(i), i);
  };
  if (is_power_of_two) {  // 2^-e for 2^e: as exact as the division
    write([factor = __uint_as_float(0x7f000000u - __float_as_uint(scale))](float x) { return x * factor; });
  } else {
    write([quotient = Quotient(scale)](float x) { return divide<kDtype>(quotient, x); });
  }
}

}  // namespace multikv::gpu
