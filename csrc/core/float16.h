// Conversion between float32 and float16 or bfloat16 on bit patterns, without branches or library calls, so that
// compilers vectorise loops of it. Conversion to 16 bits rounds to nearest even.
#pragma once

#include <bit>
#include <cstdint>

namespace multikv {

// The conversion is exact. No operand or result of its float operations is subnormal, so flush-to-zero modes do not
// change it.
constexpr float float_from_half(uint16_t half) {
  const int32_t magnitude = (half & 0x7fff) << 13;
  const auto sign = static_cast<int32_t>(static_cast<uint32_t>(half & 0x8000) << 16);
  constexpr int32_t kRebias = 112 << 23;
  constexpr int32_t kSmallestNormal = 113 << 23;  // 2^-14
  const int32_t special = magnitude >= (31 << 23) ? kRebias : 0;
  const int32_t normal = magnitude + kRebias + special;
  const auto subnormal =
      std::bit_cast<int32_t>(std::bit_cast<float>(magnitude + kSmallestNormal) - std::bit_cast<float>(kSmallestNormal));
  return std::bit_cast<float>((magnitude < (1 << 23) ? subnormal : normal) | sign);
}

constexpr float float_from_bfloat16(uint16_t bits) { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }

constexpr uint16_t half_from_float(float x) {
  const auto bits = std::bit_cast<int32_t>(x);
  const int32_t magnitude = bits & 0x7fffffff;
  constexpr int32_t kSmallestNormal = 113 << 23;
  constexpr int32_t kOverflow = 0x477ff000;  // 65520: from here on, rounding gives infinity
  const int32_t normal = ((magnitude + 0xfff + ((magnitude >> 13) & 1)) >> 13) - (112 << 10);
  // The last bit of the float32 0.5 is worth 2^-24, the smallest subnormal float16. So the addition of 0.5 rounds to a
  // multiple of it.
  const int32_t small = magnitude < kSmallestNormal ? magnitude : kSmallestNormal;
  const int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(small) + 0.5f) - std::bit_cast<int32_t>(0.5f);
  const int32_t finite = magnitude < kSmallestNormal ? subnormal : normal;
  const int32_t infinite = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  return static_cast<uint16_t>((magnitude < kOverflow ? finite : infinite) | ((bits >> 16) & 0x8000));
}

constexpr uint16_t bfloat16_from_float(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

}  // namespace multikv
