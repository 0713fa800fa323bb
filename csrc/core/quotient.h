// Division of many elements by one scale, correctly rounded, without a division per element.
#pragma once

#include <bit>
#include <cstdint>

namespace multikv {

// A divisor `scale` with its reciprocal. divide(x) returns x / scale, correctly rounded to float32 if |x / scale| is in
// [2^-30, 2^20). Outside this range the result has the right sign and encodes to the same fp8 code as x / scale, which
// is zero, the largest value or NaN. So the class is only for values that are then encoded as fp8.
//
//   r  = 1 / scale              correctly rounded
//   q  = x * r
//   q -= r * (q * scale - x)    a step, in two fused multiply-adds
//
// One step gives the correctly rounded quotient of every x with at most 11 significant bits (float16, bfloat16) and
// every scale: the test quotient_exhaustive.cpp tries all pairs of significands. For a float32 x, one step leaves q
// within one unit in the last place, and a second step gives the correctly rounded quotient (Markstein, "Computation of
// elementary functions on the IBM RISC System/6000 processor", IBM J. Res. Dev. 34, 1990).
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

  // `fma(a, b, c)` is a * b + c rounded once. kSteps: 1 for 16-bit inputs, 2 for float32.
  template <int kSteps, class Fma>
  constexpr float divide(float x, Fma fma) const {
    static_assert(kSteps == 1 || kSteps == 2);
    const float scaled = x * factor_;
    const float estimate = scaled * reciprocal_;
    // With the remainder as q * scale - x, not x - q * scale, a remainder of zero is +0, and a quotient of -0 stays -0:
    // -0 + (+0 * -r) = -0 + -0 = -0.
    float q = fma(fma(estimate, scale_, -scaled), -reciprocal_, estimate);
    if constexpr (kSteps == 2) q = fma(fma(q, scale_, -scaled), -reciprocal_, q);
    // The remainder of a large estimate may have overflowed. The estimate itself is good enough, because fp8 saturates
    // it; infinity and NaN stay what they are.
    return __builtin_fabsf(estimate) < 0x1p20f ? q : estimate;
  }

 private:
  float scale_ = 0, reciprocal_ = 0, factor_ = 0;
};

// A divisor with its reciprocal, for quotients that are correctly rounded to float32. The two steps are those of
// Quotient::divide<2>(), which are exact as long as no remainder underflows or overflows. can_divide() says whether
// they are exact for a number; if not, the caller divides.
class CheckedQuotient {
 public:
  CheckedQuotient() = default;
  constexpr explicit CheckedQuotient(float divisor)
      : divisor_(divisor), reciprocal_(1.0f / divisor), is_usable_(divisor >= 0x1p-20f && divisor <= 0x1p20f) {}

  constexpr float divisor() const { return divisor_; }
  // Whether divide(x) is x / divisor: x is zero, or from 2^-80 to 2^80. The subtraction of 1 turns the bits of zero
  // into the largest integer.
  constexpr bool can_divide(float x) const {
    constexpr uint32_t kSmallest = std::bit_cast<uint32_t>(0x1p-80f) * 2;
    return is_usable_ && std::bit_cast<uint32_t>(x) * 2 - 1 >= kSmallest - 1 && __builtin_fabsf(x) <= 0x1p80f;
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

}  // namespace multikv
