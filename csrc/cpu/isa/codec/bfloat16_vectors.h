// Vectors of bfloat16 elements as vectors of float32, and their rounding.
#pragma once

#include "cpu/isa/codec/elements.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

constexpr int64_t kFloats = sizeof(Bytes) / 4, kWords = sizeof(Bytes) / 2;  // elements of a vector

// The even and the odd elements of a vector of bfloat16.
struct EvenOdd {
  Floats even, odd;
};

inline EvenOdd widen(Bytes words) {
  return {as_floats(shift_ints_left<16>(words)), as_floats(bit_and(words, all_ints(~0xffff)))};
}
// The floats of x must be rounded to bfloat16 already.
inline Bytes narrow(const EvenOdd& x) { return bit_or(shift_ints_right<16>(as_ints(x.even)), as_ints(x.odd)); }

inline Floats load_floats(const float* from) { return as_floats(load(from)); }

// A vector of factors that elements are multiplied by. `scaled` and `split` are the factor times 2^16 and 2^16 + 1;
// they are needed for TameRounding only.
struct Factor {
  const float *value, *scaled, *split;
};

// Rounds float32 to bfloat16, to nearest even, with integers. The lower 16 bits of a NaN must be zeros.
struct AnyRounding {
  static Floats rounded(Floats x) {
    const Bytes bits = as_ints(x), is_odd = bit_and(shift_ints_right<16>(bits), all_ints(1));
    return as_floats(bit_and(add_ints(add_ints(bits, all_ints(0x7fff)), is_odd), all_ints(~0xffff)));
  }
  static Floats rounded_product(Floats x, const Factor& factor) {
    return rounded(product(x, load_floats(factor.value)));
  }
};

// Rounds like AnyRounding, with floats and in fewer steps. Let t = RN(x * 2^16 + x), where RN rounds to float32. The
// last bit of t is worth as much as the last bit of a bfloat16 near x. With an x of 16 significant bits:
//
//   x * 2^16    1 . . . . . . . . . . . . . . .
//   x                                           1 x x x x x x x y y ..   the x are kept, the y are rounded away
//   t           1 . . . . . . . . . . . . . . . 1 x x x x x x x
//
// If x has at most 16 significant bits, like a product of two bfloat16 numbers, the lowest set bit of x * 2^16 is worth
// more than the leading bit of x. So the addition rounds x alone, and the rounded x is t - x * 2^16. For any x, the
// rounded x is t - RN(t - x) (Veltkamp's splitting).
//
// Ties go to the even number: an x halfway between two bfloat16 numbers has at most 9 significant bits, so x * 2^16
// ends in zeros, and adds 0 to the last bit of t. The last bit of t is then the last bit of the rounded x.
//
// x is zero, or its magnitude is from 2^-118 to 2^110. rounded_product() may return +0 instead of -0.
struct TameRounding {
  static Floats rounded(Floats x) {
    const Floats t = product(x, all(0x10001p0f));
    return difference(t, difference(t, x));
  }
  static Floats rounded_product(Floats x, const Factor& factor) {
    return negated_fma(x, load_floats(factor.scaled), product(x, load_floats(factor.split)));
  }
};

template <class T>
concept Rounding = std::same_as<T, AnyRounding> || std::same_as<T, TameRounding>;

// Elements are tame if their magnitudes are from 2^-24 to 2^24.
class TameElements {
 public:
  void add(Bytes words) {
    // words + words drops the signs. The addition of -2 * kSmallest wraps around for magnitudes below kSmallest, so
    // that they become large unsigned words, like magnitudes above kLargest.
    largest_ = larger_unsigned_word(largest_, add_words(add_words(words, words), all_words(-2 * kSmallest)));
  }
  bool are_all() const { return !is_any_word_above(largest_, 2 * (kLargest - kSmallest)); }

 private:
  static constexpr int kSmallest = (127 - 24) << 7, kLargest = (127 + 24) << 7;  // bits of the magnitudes
  Bytes largest_ = all_words(0);
};

}  // namespace
}  // namespace multikv::cpu

#endif
