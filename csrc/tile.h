// The scale of a tile: of elements that are stored as e4m3 codes and one number that they were divided by.
// The same code for all backends.
#pragma once

#include <bit>
#include <cstdint>

#include "params.h"

namespace multikv {

// `amax` below: the largest magnitude of a tile's elements, where a NaN counts for nothing (0 if there is nothing else);
// infinity is what it is.

constexpr float tile_divisor(CacheFormat format) { return format == CacheFormat::kE4M3FNUZ ? 224.0f : 448.0f; }

// x > 0 and normal.
constexpr float power_of_two_up(float x) {
  return std::bit_cast<float>((std::bit_cast<uint32_t>(x) + 0x007fffffu) & 0x7f800000u);
}

constexpr float finite_amax(float amax) {
  constexpr float kLargest = 0x1.fffffep127f;
  return amax < kLargest ? amax : kLargest;
}

constexpr float ds_mla_tile_scale(float amax, CacheFormat format) {
  const float quotient = finite_amax(amax) / tile_divisor(format);
  return power_of_two_up(quotient > 1e-4f ? quotient : 1e-4f);
}

constexpr float indexer_tile_scale(float amax, CacheFormat format, ScaleFormat scale_format) {
  const float finite = finite_amax(amax);
  const float scale = (finite > 1e-4f ? finite : 1e-4f) / tile_divisor(format);
  return scale_format == ScaleFormat::kFloat32 ? scale : power_of_two_up(scale);
}

// The four bytes that the indexer's cache holds for a scale.
constexpr uint32_t stored_tile_scale(float scale, ScaleFormat scale_format) {
  const auto bits = std::bit_cast<uint32_t>(scale);
  return scale_format == ScaleFormat::kExponentBytes ? (bits >> 23) * 0x01010101u : bits;
}

}  // namespace multikv
