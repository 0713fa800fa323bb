// The scale of a tile: of elements that are stored as e4m3 codes and one number that they were divided by.
// The same code for all backends.
#pragma once

#include <bit>
#include <cstdint>

#include "params/params.h"

namespace multikv {

// `amax` below: the largest magnitude of a tile's elements, where a NaN counts for nothing (0 if there is nothing
// else); infinity is what it is.

// Divisors 1.75 * 2^8 and 1.75 * 2^7.
constexpr float tile_divisor(CacheFormat format) { return format == CacheFormat::kE4M3FNUZ ? 224.0f : 448.0f; }

constexpr float finite_amax(float amax) {
  constexpr float kLargest = 0x1.fffffep127f;
  return amax < kLargest ? amax : kLargest;
}

// The least power of two that is at least amax / tile_divisor, rounded or not (no float lies between the two), and at
// least `least`, a power of two itself. amax >= 0 and finite.
constexpr float power_of_two_scale(float amax, CacheFormat format, float least) {
  const int32_t exponent = format == CacheFormat::kE4M3FNUZ ? 7 : 8;
  // A significand above 1.75 carries into the exponent.
  const int32_t bits = ((std::bit_cast<int32_t>(amax) + 0x1fffff) & 0x7f800000) - (exponent << 23);
  const auto lowest = std::bit_cast<int32_t>(least);
  return std::bit_cast<float>(bits > lowest ? bits : lowest);
}

// max(amax / divisor, 1e-4), up to a power of two.
constexpr float ds_mla_tile_scale(float amax, CacheFormat format) {
  return power_of_two_scale(finite_amax(amax), format, 0x1p-13f);
}

// max(amax, 1e-4) / divisor, or that up to a power of two.
constexpr float indexer_tile_scale(float amax, CacheFormat format, ScaleFormat scale_format) {
  const float finite = finite_amax(amax), bounded = finite > 1e-4f ? finite : 1e-4f;
  if (scale_format == ScaleFormat::kFloat32) return bounded / tile_divisor(format);
  return power_of_two_scale(bounded, format, 0x1p-126f);
}

// The four bytes that the indexer's cache holds for a scale.
constexpr uint32_t stored_tile_scale(float scale, ScaleFormat scale_format) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  return scale_format == ScaleFormat::kExponentBytes ? (bits >> 23) * 0x01010101u : bits;
}

}  // namespace multikv
