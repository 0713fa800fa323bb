// Rounding of quotients to fp8 codes, as Encoder (encode.h) needs it.
//
// The float adder does the rounding. Let the quotient be q with exponent e, and m the number of mantissa bits of the
// format. Adding A = 2^(e + 23 - m), whose last bit weighs 2^(e - m), rounds q to a multiple of 2^(e - m) and leaves
// the multiple n in the last bits of the sum:
//
//   A           1 0 0 0 . . . . . . 0 0 0 0
//   q                               1 x x x y y y y ..      m = 3: the x are kept, the y are rounded away
//   A + q       1 0 0 0 . . . . . . 1 x x x                 n = 1xxx, or 10000 if it was rounded up to the next power
//
// For results below the smallest normal number, e is the exponent of that number, and n is the code. For the k-th
// exponent above it, the code is n + k * 2^m. Both Rounders below differ in how they add k * 2^m.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

#if defined(__AVX512BW__)

// Looks A up in a table, with k * 2^m already in its last bits. Quotients come multiplied by kUnit, which moves their
// exponents to values that differ in their last five bits from each other and from the exponent of NaN.
template <Element kElement>
  requires(is_fp8(kElement))
class Rounder {
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kDropped = 23 - kLayout.mantissa_bits;
  // Biased exponents of the quotients times kUnit. 159 would end in the five bits of NaN's exponent, 255.
  static constexpr int kLargest = 158;
  static constexpr int kSmallest = kLargest - (kLayout.max_bits >> 23) + (128 - kLayout.bias);
  static_assert(kSmallest >= 128);

  // The constructor sets all elements: GCC 12 treats 64 bytes as zeros if the first of them is not given.
  struct Table {
    alignas(64) float adders[32];

    constexpr Table() : adders{} {
      for (int i = 0; i < 32; ++i) {
        const int exponent = 128 + i < kSmallest ? kSmallest : 128 + i;
        const int share = (exponent - kSmallest) << kLayout.mantissa_bits;
        adders[i] = std::bit_cast<float>(i == 31 ? 0x7fc000ff : (exponent + kDropped) << 23 | share);
      }
    }
  };
  static constexpr Table kTable{};

 public:
  static constexpr float kUnit = std::bit_cast<float>((127 + kLargest - (kLayout.max_bits >> 23)) << 23);
  static constexpr bool kTakesAnyNan = true;

  Rounder() : low_(load(kTable.adders)), high_(load(kTable.adders + 16)) {}

  // quotient: not negative, multiplied by kUnit. The code is in the low word of the result; 0xff for NaN.
  [[gnu::always_inline]] Bytes operator()(Floats quotient) const {
    const Bytes exponents = shift_ints_right<23>(larger_int(as_ints(quotient), all_ints(kSmallest << 23)));
    const Floats adder = _mm512_permutex2var_ps(as_floats(low_), exponents, as_floats(high_));
    Floats sum;
    // An addition of two NaNs returns the first operand; assembly keeps the operands in this order.
    asm("vaddps %2, %1, %0" : "=v"(sum) : "v"(adder), "v"(quotient));
    return as_ints(sum);
  }

 private:
  Bytes low_, high_;
};

#else

// Computes A as kAdder times the quotient's power of two, and adds the quotient's biased exponent, shifted by m bits,
// to the sum. That exponent is too large by kExcess, which kAdder subtracts in its last bits, modulo 2^16. Quotients
// come multiplied by kUnit, which makes the smallest exponent kSmallest, so that the last bits of kAdder are even.
template <Element kElement>
  requires(is_fp8(kElement))
class Rounder {
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kDropped = 23 - kLayout.mantissa_bits;
  static constexpr int kSmallest = 128;
  static constexpr int kExcess = kSmallest << kLayout.mantissa_bits;
  static constexpr float kAdder = std::bit_cast<float>((127 + kDropped) << 23 | (0x10000 - kExcess));

 public:
  static constexpr float kUnit = std::bit_cast<float>((127 + kLayout.bias) << 23);
  static constexpr bool kTakesAnyNan = false;

  // quotient: not negative, multiplied by kUnit. The code is in the low word of the result. For a NaN whose own low
  // word is at most 0x2000 the low word is 0xff .. 0x7fff; other NaNs are not taken.
  [[gnu::always_inline]] Bytes operator()(Floats quotient) const {
    const Bytes power = bit_and(larger_int(as_ints(quotient), all_ints(kSmallest << 23)), all_ints(0x7f800000));
    const Bytes sum = as_ints(fma(as_floats(power), all(kAdder), quotient));
    return add_ints(sum, shift_ints_right<kDropped>(power));
  }
};

#endif

}  // namespace
}  // namespace multikv::cpu

#endif
