// Tiles: e4m3 codes that share a scale, which comes from the largest of them.
#pragma once

#include "../../tile.h"
#include "quantise.h"

namespace multikv::cpu {
namespace {

inline int32_t bits_of(float x) { return std::bit_cast<int32_t>(x); }
inline int16_t bits_of(Half x) { return static_cast<int16_t>(x.bits); }
inline int16_t bits_of(BFloat16 x) { return static_cast<int16_t>(x.bits); }

// Magnitudes are ordered as their bits are, NaN above infinity. Where that is found it counts for nothing, and all is done again.
template <auto kInfinity, bool kHasNaN = false, class Input>
auto largest_magnitude(const Input* from, int64_t count) {
  using Bits = decltype(bits_of(Input{}));
  constexpr auto kMagnitude = static_cast<Bits>(sizeof(Bits) == 2 ? 0x7fff : 0x7fffffff);
  Bits largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto magnitude = static_cast<Bits>(bits_of(from[i]) & kMagnitude);
    if (kHasNaN && magnitude > kInfinity) magnitude = 0;
    largest = magnitude > largest ? magnitude : largest;
  }
  if constexpr (!kHasNaN) {
    if (largest > kInfinity) return largest_magnitude<kInfinity, true>(from, count);
  }
  return largest;
}

inline float tile_amax(const float* from, int64_t count) {
  return std::bit_cast<float>(largest_magnitude<0x7f800000>(from, count));
}
inline float tile_amax(const Half* from, int64_t count) {
  return widen(Half{static_cast<uint16_t>(largest_magnitude<0x7c00>(from, count))});
}
inline float tile_amax(const BFloat16* from, int64_t count) {
  return widen(BFloat16{static_cast<uint16_t>(largest_magnitude<0x7f80>(from, count))});
}

}  // namespace
}  // namespace multikv::cpu
