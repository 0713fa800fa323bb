// exp, tanh and log with the same bits on every instruction set.
#pragma once

#include <bit>

#include "cpu/isa/attention/lanes.h"

namespace multikv::cpu {
namespace {

// 2^n for -126 <= n <= 127.
[[gnu::always_inline]] inline Native power_of_two(NativeInts n) { return std::bit_cast<Native>((n + 127) << 23); }

// exp(x) for x <= 0, with a relative error below 2^-22. A subnormal result has in addition the error of its rounding to
// a multiple of 2^-149. A NaN stays a NaN, and -infinity gives 0.
//
// x = n * ln 2 + r with |r| <= ln 2 / 2. The polynomial is that of the Cephes library (expf).
[[gnu::always_inline]] inline Native exp_of_nonpositive(Native x) {
  x = x < native(-104) ? native(-104) : x;  // exp(-104) < 2^-150
  constexpr float kRound = 0x1.8p23f;       // adding it rounds to an integer
  const Native shifted = x * 1.44269504f + kRound;
  const Native n = shifted - kRound;
  const Native r = x - n * 0.693359375f - n * -2.12194440e-4f;  // the first product is exact
  Native y = native(1.9875691500e-4f);
  y = y * r + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * (r * r) + r + 1.0f;
  // Two factors, because 2^n may be smaller than the smallest normal number.
  const NativeInts exponent = std::bit_cast<NativeInts>(shifted) - std::bit_cast<int32_t>(kRound);
  const NativeInts half = exponent >> 1;
  return y * power_of_two(half) * power_of_two(exponent - half);
}

inline float exp_of_nonpositive(float x) { return exp_of_nonpositive(native(x))[0]; }

// tanh(x) with an absolute error below 2^-22.
[[gnu::always_inline]] inline Native tanh_of(Native x) {
  const NativeInts bits = std::bit_cast<NativeInts>(x), sign = bits & native_ints(static_cast<int32_t>(0x80000000));
  const Native magnitude = std::bit_cast<Native>(bits ^ sign);
  const Native e = exp_of_nonpositive(magnitude * -2.0f);
  return std::bit_cast<Native>(std::bit_cast<NativeInts>((1.0f - e) / (1.0f + e)) | sign);
}

// log(x) for x > 0, correctly rounded but for rare cases. Returns x if it is infinity or NaN.
//
// x = m * 2^e with m in [sqrt(1/2), sqrt(2)), and log m = 2 * atanh((m - 1) / (m + 1)) as a series in float64.
inline float log_of(float x) {
  if (!(x <= 0x1.fffffep127f)) return x;
  const bool is_subnormal = x < 0x1p-126f;
  const uint32_t bits = std::bit_cast<uint32_t>(is_subnormal ? x * 0x1p24f : x);
  constexpr uint32_t kSqrtHalf = 0x3f3504f3;
  const int32_t exponent = static_cast<int32_t>(bits - kSqrtHalf) >> 23;
  const double m = std::bit_cast<float>(bits - (static_cast<uint32_t>(exponent) << 23));
  const double z = (m - 1) / (m + 1), z2 = z * z;
  constexpr double kTerms[] = {1.0 / 11, 1.0 / 9, 1.0 / 7, 1.0 / 5, 1.0 / 3, 1.0};
  double series = 1.0 / 13;
  for (const double term : kTerms) series = series * z2 + term;
  return static_cast<float>((exponent - (is_subnormal ? 24 : 0)) * 0.69314718055994530942 + 2 * z * series);
}

}  // namespace
}  // namespace multikv::cpu
