// Quotients to fp8 codes: the rounding in Encoder (encode.h).
//
// Adding a number that is larger than a quotient by as many binary places as are dropped makes the float adder round
// it, and leaves it in the lowest bits of the sum as a multiple of its last place: 2^m to 2^(m+1) of them, m bits of
// mantissa; or fewer of the smallest last place, for subnormal results. The code is that plus 2^m for each exponent
// above the smallest.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/simd/lanes.h"

#ifdef MULTIKV_HAS_LANES

namespace multikv::cpu {
namespace {

#if defined(__AVX512BW__)

// The adder comes from a table, with the exponent's share of the code in its last bits. Quotients are multiplied by
// kUnit, which puts their exponents where the last five bits of an exponent, of NaN too, tell them apart.
template <CacheFormat kFormat>
class Rounder {
  static constexpr Fp8Layout kLayout = layout_of(kFormat);
  static constexpr int kDropped = 23 - kLayout.mantissa_bits;
  static constexpr int kLargest = 158;  // exponents as they are in a float32; 159 would have NaN's last bits
  static constexpr int kSmallest = kLargest - (kLayout.max_bits >> 23) + (128 - kLayout.bias);
  static_assert(kSmallest >= 128);

  // All elements are given: GCC 12 takes 64 bytes for zeros if the first of them is not.
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

  // Of a quotient that is not negative, times kUnit: the code in the lowest 16 bits; 0xff for NaN.
  [[gnu::always_inline]] Bytes operator()(Floats quotient) const {
    const Bytes exponents = shift_ints_right<23>(larger_int(as_ints(quotient), all_ints(kSmallest << 23)));
    const Floats adder = _mm512_permutex2var_ps(as_floats(low_), exponents, as_floats(high_));
    Floats sum;
    // In this order: of two NaNs an addition returns the first one.
    asm("vaddps %2, %1, %0" : "=v"(sum) : "v"(adder), "v"(quotient));
    return as_ints(sum);
  }

 private:
  Bytes low_, high_;
};

#else

// The adder is the quotient's own power of two, times a constant, whose last bits take away what the exponent, that
// is added to the sum in the place of the code's, is too large by. Quotients are multiplied by kUnit, which gives the
// smallest exponent a value that leaves these bits even.
template <CacheFormat kFormat>
class Rounder {
  static constexpr Fp8Layout kLayout = layout_of(kFormat);
  static constexpr int kDropped = 23 - kLayout.mantissa_bits;
  static constexpr int kSmallest = 128;
  static constexpr int kExcess = kSmallest << kLayout.mantissa_bits;
  static constexpr float kAdder = std::bit_cast<float>((127 + kDropped) << 23 | (0x10000 - kExcess));

 public:
  static constexpr float kUnit = std::bit_cast<float>((127 + kLayout.bias) << 23);
  static constexpr bool kTakesAnyNan = false;

  // Of a quotient that is not negative, times kUnit: the code in the lowest 16 bits; for a NaN that has in its own
  // lowest 16 bits no more than 0x2000, something from 0xff to 0x7fff.
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
