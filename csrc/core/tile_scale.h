// The scale of a tile of elements, which are divided by the scale and stored as e4m3 codes. All backends share this
// code.
//
// `amax` is the largest magnitude of the elements that are not NaN: 0 if all of them are NaN, and possibly infinity.
#pragma once

#include <bit>
#include <cstdint>

#include "core/format.h"

namespace multikv {

// The magnitude that an amax is scaled to. 448 = 1.75 * 2^8 is the largest e4m3fn. 224 = 1.75 * 2^7 is less than the
// largest e4m3fnuz, 240.
constexpr float tile_divisor(Element element) { return element == Element::kE4M3FNUZ ? 224.0f : 448.0f; }

constexpr float finite_amax(float amax) {
  constexpr float kLargest = 0x1.fffffep127f;
  return amax < kLargest ? amax : kLargest;
}

// The least power of two that is at least amax / tile_divisor and at least `least`, which is a power of two. It does
// not matter whether the quotient is rounded: none that is above a power of two rounds down to it. amax is finite.
constexpr float power_of_two_scale(float amax, Element element, float least) {
  const int32_t exponent = element == Element::kE4M3FNUZ ? 7 : 8;
  // This sum carries into the exponent if the significand of amax is above 1.75: 0x1fffff is 2 - 1.75, less one bit.
  const int32_t bits = ((std::bit_cast<int32_t>(amax) + 0x1fffff) & 0x7f800000) - (exponent << 23);
  const auto lowest = std::bit_cast<int32_t>(least);
  return std::bit_cast<float>(bits > lowest ? bits : lowest);
}

// max(amax / divisor, 1e-4), rounded up to a power of two.
constexpr float ds_mla_tile_scale(float amax, Element element) {
  return power_of_two_scale(finite_amax(amax), element, 0x1p-13f);
}

// max(amax, 1e-4) / divisor, rounded up to a power of two unless the type is kFloat32.
constexpr float indexer_tile_scale(float amax, Element element, ScaleType type) {
  const float finite = finite_amax(amax), bounded = finite > 1e-4f ? finite : 1e-4f;
  if (type == ScaleType::kFloat32) return bounded / tile_divisor(element);
  return power_of_two_scale(bounded, element, 0x1p-126f);
}

// The four bytes that the indexer's cache stores for a scale.
constexpr uint32_t stored_tile_scale(float scale, ScaleType type) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  return type == ScaleType::kExponentBytes ? (bits >> 23) * 0x01010101u : bits;
}

}  // namespace multikv
