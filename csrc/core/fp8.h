// Conversion between float32 and fp8 on bit patterns. Encoding rounds to nearest even and saturates. CPUs use these
// functions, and so do GPUs that have no instruction for a format. The functions have no branches and no library calls,
// so that compilers vectorise loops of them.
//
//            bit 7 .. 0   bias   largest   infinity     NaN
//   e4m3fn   s eeee mmm      7       448   none         0x7f, 0xff
//   e5m2     s eeeee mm     15     57344   0x7c, 0xfc   0x7d .. 0x7f, 0xfd .. 0xff
//   e4m3fnuz s eeee mmm      8       240   none         0x80 (there is no -0)
//   e5m2fnuz s eeeee mm     16     57344   none         0x80 (there is no -0)
//
// e4m3fn and e5m2: "FP8 Formats for Deep Learning" (Micikevicius et al. 2022) and the OCP 8-bit floating point
// specification. The fnuz formats: "8-bit Numerical Formats for Deep Neural Networks" (Noune et al. 2022).
#pragma once

#include <bit>
#include <cstdint>

#include "core/float16.h"
#include "core/format.h"

namespace multikv {

struct Fp8Layout {
  int mantissa_bits;
  int bias;
  int32_t max_bits;  // the largest finite value, as the bit pattern of a float32
  bool fnuz;
};

// `element` must be an fp8 element.
constexpr Fp8Layout layout_of(Element element) {
  switch (element) {
    case Element::kE4M3FN: return {3, 7, 0x43e00000, false};    // 448
    case Element::kE5M2: return {2, 15, 0x47600000, false};     // 57344
    case Element::kE4M3FNUZ: return {3, 8, 0x43700000, true};   // 240
    case Element::kE5M2FNUZ: return {2, 16, 0x47600000, true};  // 57344
    case Element::kFloat32:
    case Element::kFloat16:
    case Element::kBFloat16:
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  return {};
}

// Bit patterns without their sign are held in signed integers, because AVX2 can only compare signed integers. If
// `layout` is a compile-time constant, the compiler folds everything that is computed from it.
constexpr uint8_t encode_fp8(float x, const Fp8Layout& layout) {
  const int dropped = 23 - layout.mantissa_bits;
  const auto bits = std::bit_cast<int32_t>(x);
  const int32_t unclamped = bits & 0x7fffffff;
  const int32_t magnitude = unclamped < layout.max_bits ? unclamped : layout.max_bits;

  // If the result is normal, half of the last kept bit's value is added (ties go to even), the bits after it are
  // dropped, and the exponent is rebased.
  const int32_t odd = (magnitude >> dropped) & 1;
  const int32_t normal =
      ((magnitude + ((1 << (dropped - 1)) - 1) + odd) >> dropped) - ((127 - layout.bias) << layout.mantissa_bits);
  // If the result is subnormal, the addition of `adder` rounds it: the last bit of `adder` has the value of the
  // smallest subnormal.
  const int32_t smallest_normal = (128 - layout.bias) << 23;
  const int32_t adder = smallest_normal + (dropped << 23);
  const int32_t small = magnitude < smallest_normal ? magnitude : smallest_normal;
  const int32_t subnormal = std::bit_cast<int32_t>(std::bit_cast<float>(small) + std::bit_cast<float>(adder)) - adder;

  const int32_t code = magnitude < smallest_normal ? subnormal : normal;
  const int32_t sign = (bits >> 24) & 0x80;
  const int32_t signed_code = layout.fnuz && code == 0 ? 0 : code | sign;
  return static_cast<uint8_t>(unclamped > 0x7f800000 ? (layout.fnuz ? 0x80 : 0x7f) : signed_code);
}

// The conversion is exact. No operand or result of its float operations is subnormal, so flush-to-zero modes do not
// change it.
constexpr float decode_fp8(uint8_t code, const Fp8Layout& layout) {
  const int32_t magnitude = (code & 0x7f) << (23 - layout.mantissa_bits);
  const int32_t smallest_normal = (128 - layout.bias) << 23;
  const int32_t normal = magnitude + ((127 - layout.bias) << 23);
  const auto subnormal =
      std::bit_cast<int32_t>(std::bit_cast<float>(magnitude + smallest_normal) - std::bit_cast<float>(smallest_normal));
  const int32_t finite = magnitude < (1 << 23) ? subnormal : normal;
  const int32_t first_special = layout.fnuz ? 0x80 : layout.mantissa_bits == 2 ? 0x7c : 0x7f;
  const int32_t special = layout.mantissa_bits == 2 && (code & 0x7f) == 0x7c ? 0x7f800000 : 0x7fc00000;
  const int32_t bits = (code & 0x7f) >= first_special ? special : finite;
  const auto sign = static_cast<int32_t>(static_cast<uint32_t>(code & 0x80) << 24);
  return std::bit_cast<float>(layout.fnuz && code == 0x80 ? 0x7fc00000 : bits | sign);
}

}  // namespace multikv
