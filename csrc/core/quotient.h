// Division of many elements by one scale, correctly rounded, without a division per element.
#pragma once

#include <bit>
#include <cstdint>

namespace multikv {

// A divisor `scale` with its reciprocal. divide(x) encodes to the same fp8 code as x / scale. So the class is only for
// values that are then encoded as fp8.
//
//   r  = 1 / scale              correctly rounded
//   q  = x * r
//   q -= r * (q * scale - x)    a step, in two fused multiply-adds
//
// The step leaves q within one unit in the last place of x / scale, and for an x with at most 11 significant bits
// (float16, bfloat16) it gives the correctly rounded quotient. A code changes only at a midpoint between two fp8
// numbers, which has at most 5 significant bits. The test quotient_exhaustive.cpp tries every scale with every float32
// x whose quotient is near a midpoint: q is on the same side of the midpoint as the correctly rounded quotient.
//
// The remainder q * scale - x must not underflow. So if the scale is below 2^-40 or above 2^40, scale and x are both
// multiplied by a power of two that brings the scale into [2^-60, 2^60]. If |x / scale| is in [2^-30, 2^20), both
// multiplications are exact.
class Quotient {
 public:
  constexpr explicit Quotient(float scale) {
    const auto bits = std::bit_cast<uint32_t>(scale);
    const uint32_t magnitude = bits & 0x7fffffffu;
    float factor = 1.0f;
    if (magnitude < 0x2b800000u) factor = 0x1p100f;   // |scale| < 2^-40
    if (magnitude > 0x53800000u) factor = 0x1p-100f;  // |scale| > 2^40
    if (magnitude == 0x7f800000u) factor = 0.0f;      // finite / infinity is zero
    scale_ = factor == 0.0f ? 1.0f : std::bit_cast<float>(magnitude) * factor;
    factor_ = std::bit_cast<float>(std::bit_cast<uint32_t>(factor) | (bits & 0x80000000u));
    reciprocal_ = 1.0f / scale_;
  }

  // `fma(a, b, c)` is a * b + c rounded once.
  template <class Fma>
  constexpr float divide(float x, Fma fma) const {
    const float scaled = x * factor_;
    const float estimate = scaled * reciprocal_;
    // The step subtracts r * (q * scale - x) instead of adding r * (x - q * scale), so that an estimate of -0 stays -0.
    // A zero remainder is +0 in both forms. This form adds +0 * -r = -0 to the estimate, and -0 + -0 is -0. The other
    // form would add +0 * r = +0, and -0 + +0 is +0.
    const float q = fma(fma(estimate, scale_, -scaled), -reciprocal_, estimate);
    // The remainder of a large estimate may have overflowed. The estimate itself is good enough, because fp8 saturates
    // it; infinity and NaN stay what they are.
    return __builtin_fabsf(estimate) < 0x1p20f ? q : estimate;
  }

 private:
  float scale_ = 0, reciprocal_ = 0, factor_ = 0;
};

// Orders magnitudes, with zero as the largest: the subtraction of 1 turns the bits of zero into the largest integer.
constexpr uint32_t nonzero_order(float x) { return std::bit_cast<uint32_t>(x) * 2 - 1; }
// A nonzero number whose order is below kTinyOrder is tiny: its quotient may need the caller's division.
inline constexpr uint32_t kTinyOrder = nonzero_order(0x1p-64f);
constexpr bool is_tiny(float x) { return nonzero_order(x) < kTinyOrder; }

// A divisor with its reciprocal, for quotients that are correctly rounded to float32. divide() takes two steps like the
// one of Quotient. They are exact as long as no remainder underflows or overflows (Markstein, "Computation of
// elementary functions on the IBM RISC System/6000 processor", IBM J. Res. Dev. 34, 1990). can_divide() says whether
// they are exact for a number; if not, the caller divides.
class CheckedQuotient {
 public:
  CheckedQuotient() = default;
  constexpr explicit CheckedQuotient(float divisor)
      : divisor_(divisor), reciprocal_(1.0f / divisor), is_usable_(divisor >= 0x1p-20f && divisor <= 0x1p20f) {}

  // Whether divide(x) is x / divisor: the divisor is from 2^-20 to 2^20, and x is zero or |x| from 2^-64 to 2^80.
  constexpr bool can_divide(float x) const {
    bool can = is_usable_;
    can &= !is_tiny(x);
    can &= __builtin_fabsf(x) <= 0x1p80f;
    return can;
  }
  // `fma(a, b, c)` is a * b + c rounded once.
  template <class Fma>
  constexpr float divide(float x, Fma fma) const {
    const float estimate = x * reciprocal_;
    const float q = fma(fma(estimate, divisor_, -x), -reciprocal_, estimate);
    return fma(fma(q, divisor_, -x), -reciprocal_, q);
  }

 private:
  float divisor_ = 0, reciprocal_ = 0;
  bool is_usable_ = false;
};

// A divisor next to 1, such as cos^2 + sin^2 in float32, for quotients that are correctly rounded to float32:
//
//   x / divisor = x * high + x * low     high = 1 / divisor, rounded down; low is the rest, but at least 2^-60
//
// The test quotient_exhaustive.cpp tries all divisors that takes() accepts with every significand. Because low is
// positive, zeros keep their sign, and infinity does not become NaN.
class NearOneQuotient {
 public:
  static constexpr bool takes(float divisor) {
    return std::bit_cast<uint32_t>(divisor) - (kOne - kMost) <= 2 * static_cast<uint32_t>(kMost);
  }
  NearOneQuotient() = default;
  // The caller has checked that takes(divisor) is true. `fma(a, b, c)` is a * b + c rounded once.
  template <class Fma>
  constexpr NearOneQuotient(float divisor, Fma fma) {
    // `above` counts the float32 steps from 1 to the divisor. A step is 2^-23 for numbers greater than 1, and 2^-24 for
    // numbers less than 1. 1 / divisor is near 2 - divisor, at the same distance on the other side of 1. So it is
    // 2 * above steps less than 1, or -above / 2 steps greater than 1.
    const int32_t above = std::bit_cast<int32_t>(divisor) - kOne;
    high_ = std::bit_cast<float>(kOne + (above > 0 ? -2 * above : -above / 2));
    const float nearest = std::bit_cast<float>(kOne + (above > 0 ? -2 * above : (1 - above) / 2));  // 1 / divisor
    const float rest = fma(-high_, divisor, 1.0f) * nearest;
    low_ = rest > 0x1p-60f ? rest : 0x1p-60f;
  }

  // Whether divide(x) is x / divisor: x * low does not underflow.
  constexpr bool can_divide(float x) const { return !is_tiny(x); }
  template <class Fma>
  constexpr float divide(float x, Fma fma) const {
    return fma(x, high_, x * low_);
  }
  constexpr float high() const { return high_; }
  constexpr float low() const { return low_; }

 private:
  static constexpr int32_t kOne = 0x3f800000, kMost = 12;
  float high_ = 1, low_ = 0x1p-60f;
};

}  // namespace multikv
