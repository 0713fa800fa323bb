// float32 -> fp8 on bit patterns: round to nearest even, saturating. The one definition that CPUs, and GPUs without an
// instruction for a format, share. No branches and no library calls, so that compilers turn loops of it into vector
// code.
//
// Formats: e4m3fn and e5m2 as in "FP8 Formats for Deep Learning" (Micikevicius et al. 2022) and the OCP 8-bit
// floating point specification; the fnuz variants as in "8-bit Numerical Formats for Deep Neural Networks"
// (Noune et al. 2022): exponent bias one higher, no infinities, no negative zero, NaN = 0x80.
#pragma once

#include <bit>
#include <cstdint>

#include "core/float16.h"
#include "params/params.h"

namespace multikv {

struct Fp8Layout {
  int mantissa_bits;
  int bias;
  int32_t max_bits;  // the largest finite value, as float32 bits
  bool fnuz;
};

constexpr Fp8Layout layout_of(CacheFormat format) {
  switch (format) {
    case CacheFormat::kE5M2: return {2, 15, 0x47600000, false};     // 57344
    case CacheFormat::kE4M3FNUZ: return {3, 8, 0x43700000, true};   // 240
    case CacheFormat::kE5M2FNUZ: return {2, 16, 0x47600000, true};  // 57344
    default: return {3, 7, 0x43e00000, false};                      // e4m3fn: 448
  }
}

// All bit patterns are held as signed integers without their sign bit: vector units compare those.
// With a layout known at compile time its parts become constants.
constexpr uint8_t encode_fp8(float x, const Fp8Layout& layout) {
  const int dropped = 23 - layout.mantissa_bits;
  const auto bits = std::bit_cast<int32_t>(x);
  const int32_t unclamped = bits & 0x7fffffff;
  const int32_t magnitude = unclamped < layout.max_bits ? unclamped : layout.max_bits;

  // Normal results: add half of the last kept place (ties to even), drop the rest, move the exponent to the new bias.
  const int32_t odd = (magnitude >> dropped) & 1;
  const int32_t normal =
      ((magnitude + ((1 << (dropped - 1)) - 1) + odd) >> dropped) - ((127 - layout.bias) << layout.mantissa_bits);
  // Subnormal results: adding a number whose last place is the smallest subnormal lets the float adder round.
  const int32_t smallest_normal = (128 - layout.bias) << 23;
  const int32_t adder = smallest_normal + (dropped << 23);
  const int32_t small = magnitude < smallest_normal ? magnitude : smallest_normal;
  const int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(small) + std::bit_cast<float>(adder)) - adder;

  const int32_t code = magnitude < smallest_normal ? subnormal : normal;
  const int32_t sign = (bits >> 24) & 0x80;
  const int32_t signed_code = layout.fnuz && code == 0 ? 0 : code | sign;
  return static_cast<uint8_t>(unclamped > 0x7f800000 ? (layout.fnuz ? 0x80 : 0x7f) : signed_code);
}

// fp8 -> float32, exact; like encode_fp8 without branches, and without reading a subnormal float32.
constexpr float decode_fp8(uint8_t code, const Fp8Layout& layout) {
  const int32_t magnitude = (code & 0x7f) << (23 - layout.mantissa_bits);
  const int32_t smallest_normal = (128 - layout.bias) << 23;
  const int32_t normal = magnitude + ((127 - layout.bias) << 23);
  const auto subnormal =
      std::bit_cast<int32_t>(std::bit_cast<float>(magnitude + smallest_normal) - std::bit_cast<float>(smallest_normal));
  const int32_t finite = magnitude < (1 << 23) ? subnormal : normal;
  // e5m2 has codes for infinity (0x7c) and three for NaN above it, e4m3fn one for NaN, fnuz one where -0 would be.
  const int32_t first_special = layout.fnuz ? 0x80 : layout.mantissa_bits == 2 ? 0x7c : 0x7f;
  const int32_t special = layout.mantissa_bits == 2 && (code & 0x7f) == 0x7c ? 0x7f800000 : 0x7fc00000;
  const int32_t bits = (code & 0x7f) >= first_special ? special : finite;
  const auto sign = static_cast<int32_t>(static_cast<uint32_t>(code & 0x80) << 24);
  return std::bit_cast<float>(layout.fnuz && code == 0x80 ? 0x7fc00000 : bits | sign);
}

}  // namespace multikv
