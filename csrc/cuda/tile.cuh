// Tiles: elements that share one scale, which comes from the largest of them.
#pragma once

#include "../tile.h"
#include "vec.cuh"

namespace multikv::gpu {

// The largest magnitude of kCount elements and `amax`. fmaxf ignores NaN.
template <Float kDtype, int kCount>
__device__ inline float amax_of(const uint32_t* words, float amax) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) amax = fmaxf(amax, fabsf(element<kDtype>(words, i)));
  return amax;
}

// Where a tile goes. codes == nullptr: nowhere.
struct TilePlace {
  char* codes;
  char* scale;  // four bytes
};

// Quantises kTiles tiles of `size` elements: `lanes` neighbouring lanes of a group together (a power of two), each a vector of
// kElements after the other. All lanes of the group must call. sources[i] == nullptr: there is no such tile. place_of(i) is
// asked for when all loads are on their way; scale_of(amax) gives the scale (always a power of two, or not), stored(scale)
// what is stored.
template <Float kDtype, int kElements, int kTiles, class PlaceOf, class ScaleOf, class Stored>
__device__ inline void quantise_tiles(const char* const (&sources)[kTiles], PlaceOf place_of, int64_t size, int lane,
                                      int lanes, CacheFormat format, bool is_power_of_two, ScaleOf scale_of,
                                      Stored stored) {
  constexpr int kSourceBytes = kElements * static_cast<int>(num_bytes(kDtype));
  using Source = Pack<kSourceBytes>;
  const int64_t vectors = size / kElements;
  // Most tiles are one vector for each lane: it stays in registers.
  Source first[kTiles];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    first[t] = Source{};
    if (sources[t] != nullptr && lane < vectors) first[t] = Source::read(sources[t] + lane * kSourceBytes);
  }
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
    float amax = amax_of<kDtype, kElements>(first[t].words, 0.0f);
    for (int64_t i = lane + lanes; sources[t] != nullptr && i < vectors; i += lanes) {
      amax = amax_of<kDtype, kElements>(Source::read(sources[t] + i * kSourceBytes).words, amax);
    }
    for (int mask = lanes / 2; mask > 0; mask /= 2) amax = fmaxf(amax, shuffle_xor(amax, mask));
    const TilePlace place = place_of(t);
    if (place.codes == nullptr) continue;
    const float scale = scale_of(amax);
    if (lane == 0) store_word(place.scale, stored(scale));
    const auto write = [&](auto by_scale) {
      if (lane < vectors) quantise<kDtype, kElements>(first[t].words, format, by_scale).write(place.codes + lane * kElements);
      for (int64_t i = lane + lanes; i < vectors; i += lanes) {
        const Source source = Source::read(sources[t] + i * kSourceBytes);
        quantise<kDtype, kElements>(source.words, format, by_scale).write(place.codes + i * kElements);
      }
    };
    if (is_power_of_two) {
      write([factor = 1.0f / scale](float x) { return x * factor; });  // as exact as the division
    } else {
      write([quotient = Quotient(scale)](float x) { return divide<kDtype>(quotient, x); });
    }
  }
}

}  // namespace multikv::gpu
