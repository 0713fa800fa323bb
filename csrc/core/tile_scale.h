// The scale of a tile, computed from its elements. The elements are divided by the scale and stored as e4m3 codes. All
// backends use these functions.
//
// `amax` is the largest magnitude of the tile's elements that are not NaN. It is 0 if all elements are NaN, and may be
// infinity.
#pragma once

#include <bit>
#include <cstdint>

#include "core/format.h"

namespace multikv {

// The divisor of the scale: scale = amax / divisor, which some formats then round up to a power of two. For e4m3fn it
// is 448 = 1.75 * 2^8, the largest e4m3fn value. For e4m3fnuz it is 224 = 1.75 * 2^7, not the largest value, 240,
// because vLLM divides by 224. power_of_two_scale() relies on the significand 1.75 of both.
constexpr float tile_divisor(Element element) { return element == Element::kE4M3FNUZ ? 224.0f : 448.0f; }

// Replaces infinity by the largest finite float32.
constexpr float finite_amax(float amax) {
  constexpr float kLargest = 0x1.fffffep127f;
  return amax < kLargest ? amax : kLargest;
}

// The smallest power of two that is at least amax / tile_divisor() and at least `least`. `least` is a power of two, and
// amax is finite.
//
// Rounding the quotient to float32 first would not change the result. A quotient is above 2^k only if amax is at least
// one float32 step above 2^k * tile_divisor(). The significand of tile_divisor() is 1.75, so the quotient is then above
// 2^k by at least 1 / 1.75 of the float32 step at 2^k. That is more than half a step, so the quotient does not round
// down to 2^k.
constexpr float power_of_two_scale(float amax, Element element, float least) {
  const int32_t exponent = element == Element::kE4M3FNUZ ? 7 : 8;
  // The sum carries into the exponent if and only if the significand of amax is above 1.75: as bits of a significand,
  // 0x200000 is 2 - 1.75, and 0x1fffff is one less.
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
