// Rounds quotients to fp8 codes, for Encoder (encode.h).
//
// A float addition does the rounding. Let q be the quotient, e its exponent, and m the number of mantissa bits of the
// fp8 format. The last bit of A = 2^(e + 23 - m) has the value 2^(e - m). So A + q rounds q to n * 2^(e - m), and the
// last bits of the sum are the integer n:
//
//   A           1 0 0 0 . . . . . . 0 0 0 0
//   q                               1 x x x y y y y ..      m = 3: the x are kept, the y are rounded away
//   A + q       1 0 0 0 . . . . . . 1 x x x                 n = 1xxx, or 10000 if it was rounded up to the next power
//
// For quotients below the smallest normal number, e is the exponent of the smallest normal number, and n is the code.
// For the k-th exponent above it, the code is n + k * 2^m. The two Rounders below differ in how they add k * 2^m.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

#if defined(__AVX512BW__)

// Looks up A in a table of 32 floats, by the last five bits of the quotient's exponent. The integer k * 2^m is already
// added to the bit pattern of A there. The caller multiplies quotients by kUnit, which moves the biased exponents of
// normal fp8 numbers into the range 128 .. 158. There the last five bits are 0 .. 30. The exponent of NaN ends in 31.
template <Element kElement>
  requires(is_fp8(kElement))
class Rounder {
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kDropped = 23 - kLayout.mantissa_bits;
  // Biased exponents of the quotients times kUnit. 159 is excluded, because its last five bits are those of 255, the
  // exponent of NaN.
  static constexpr int kLargest = 158;
  static constexpr int kSmallest = kLargest - (kLayout.max_bits >> 23) + (128 - kLayout.bias);
  static_assert(kSmallest >= 128);

  // The constructor sets all elements, also those that are never looked up: if the first of 16 elements has no
  // initialiser, GCC 12 may compile the load of the 16 elements to a vector of zeros.
  struct Table {
    alignas(64) float adders[32];

    constexpr Table() : adders{} {
      for (int i = 0; i < 32; ++i) {
        const int exponent = 128 + i < kSmallest ? kSmallest : 128 + i;
        const int addend = (exponent - kSmallest) << kLayout.mantissa_bits;  // k * 2^m
        adders[i] = std::bit_cast<float>(i == 31 ? 0x7fc000ff : (exponent + kDropped) << 23 | addend);
      }
    }
  };
  static constexpr Table kTable{};

 public:
  static constexpr float kUnit = std::bit_cast<float>((127 + kLargest - (kLayout.max_bits >> 23)) << 23);
  static constexpr bool kTakesAnyNan = true;

  Rounder() : low_(load(kTable.adders)), high_(load(kTable.adders + 16)) {}

  // `quotient` is not negative and is multiplied by kUnit. The low word of the result is the code, or 0xff for NaN.
  [[gnu::always_inline]] Bytes operator()(Floats quotient) const {
    const Bytes exponents = shift_ints_right<23>(larger_int(as_ints(quotient), all_ints(kSmallest << 23)));
    const Floats adder = _mm512_permutex2var_ps(as_floats(low_), exponents, as_floats(high_));
    Floats sum;
    // If the quotient is NaN, so is the adder, and the sum of two NaNs is the first operand: the adder, which ends in
    // 0xff. It is written in assembly because a compiler may swap the operands of an addition.
    asm("vaddps %2, %1, %0" : "=v"(sum) : "v"(adder), "v"(quotient));
    return as_ints(sum);
  }

 private:
  Bytes low_, high_;
};

#else

// Computes A as kAdder * 2^(E - 127), and adds E * 2^m to the sum A + q. E is the larger of kSmallest and the biased
// exponent of the quotient times kUnit. kUnit moves the smallest normal number to the biased exponent kSmallest, so
// that E is kSmallest + k. E * 2^m is larger than the k * 2^m of the code by kExcess = kSmallest * 2^m. kAdder
// subtracts kExcess in advance. Modulo 2^16, the low words are:
//
//   kAdder and A       -kExcess
//   A + q              n - kExcess
//   A + q + E * 2^m    n - kExcess + E * 2^m = n + k * 2^m, the code
//
// kExcess is even, so that ties still round to the even n.
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

  // `quotient` is not negative and is multiplied by kUnit. The low word of the result is the code. A NaN must have a
  // low word of at most 0x2000, which is that of the float16 NaN with the smallest payload, widened to float32. The low
  // word of its result is then from 0xff to 0x7fff, which saturate_words() turns into 0xff.
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
