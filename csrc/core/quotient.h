// Division by a scale that many elements share: x / scale, rounded as IEEE does, without a division per element.
#pragma once

#include <bit>
#include <cstdint>

namespace multikv {

// Good for what is then rounded to fp8: exact (the correctly rounded float32) where |x / scale| is in [2^-30, 2^20);
// below and above, a value of the right sign that fp8 sends to the same zero, maximum or NaN.
//
// r = 1 / scale correctly rounded, q = x * r, then q -= r * (q * scale - x) with fused operations. One such step gives
// the correctly rounded quotient of every x with at most 11 significant bits (float16, bfloat16) and every scale:
// tests/quotient_exhaustive.cpp tries all pairs of significands. For float32 the first step leaves q within one unit in
// the last place and the second gives the correctly rounded quotient (Markstein, "Computation of elementary functions
// on the IBM RISC System/6000 processor", IBM J. Res. Dev. 34, 1990).
//
// The remainder must not underflow, so extreme scales are brought into [2^-60, 2^60], and x with them, by an exact
// power of two.
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
    // The remainder is taken negative, q * scale - x: a zero one is then +0, and -0 + +0 * -r keeps the sign of a zero
    // quotient.
    float q = fma(fma(estimate, scale_, -scaled), -reciprocal_, estimate);
    if constexpr (kSteps == 2) q = fma(fma(q, scale_, -scaled), -reciprocal_, q);
    // Infinities and NaN, and what fp8 saturates, keep the estimate: their remainder may have overflowed.
    return __builtin_fabsf(estimate) < 0x1p20f ? q : estimate;
  }

 private:
  float scale_ = 0, reciprocal_ = 0, factor_ = 0;
};

}  // namespace multikv
