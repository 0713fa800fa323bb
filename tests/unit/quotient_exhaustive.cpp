// Compares Quotient with IEEE division for every pair of a float32 significand (the scale) and an 11-bit one (float16,
// bfloat16), and for random float32 pairs. Powers of two only shift both sides. Compares CheckedQuotient with it for
// random float32 pairs. Exit code 0: no difference.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>

#include "core/quotient.h"

namespace {

float fused(float a, float b, float c) { return std::fma(a, b, c); }

long count_wrong_11_bits() {
  long wrong = 0;
  for (uint32_t m = 0; m < (1u << 23); ++m) {
    const float scale = std::bit_cast<float>(0x3f800000u | m);
    const multikv::Quotient quotient(scale);
    int here = 0;
    for (uint32_t k = 0; k < 1024; ++k) {
      const float x = std::bit_cast<float>(0x3f800000u | k << 13);
      here += quotient.divide<1>(x, fused) != x / scale;
    }
    wrong += here;
  }
  return wrong;
}

long count_wrong_float32(long pairs) {
  std::mt19937 random(1);
  long wrong = 0;
  for (long i = 0; i < pairs; ++i) {
    const float scale = std::bit_cast<float>(0x3f800000u | static_cast<uint32_t>(random()) >> 9);
    const float x = std::bit_cast<float>(0x3f800000u | static_cast<uint32_t>(random()) >> 9);
    wrong += multikv::Quotient(scale).divide<2>(x, fused) != x / scale;
  }
  return wrong;
}

// Divisors are as squares of tables are: near 1, or anywhere. Numbers have any exponent.
long count_wrong_checked(long pairs, long& divided) {
  std::mt19937 random(2);
  long wrong = 0;
  for (long i = 0; i < pairs; ++i) {
    const uint32_t bits =
        i % 2 == 0 ? 0x3f800000u + static_cast<uint32_t>(random()) % 4096 - 2048 : static_cast<uint32_t>(random());
    const float divisor = std::bit_cast<float>(bits), x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const multikv::CheckedQuotient quotient(divisor);
    if (!quotient.can_divide(x)) continue;
    ++divided;
    wrong += std::bit_cast<uint32_t>(quotient.divide(x, fused)) != std::bit_cast<uint32_t>(x / divisor);
  }
  for (const float zero : {0.0f, -0.0f}) {
    const multikv::CheckedQuotient quotient(1.5f);
    wrong += !quotient.can_divide(zero) ||
             std::bit_cast<uint32_t>(quotient.divide(zero, fused)) != std::bit_cast<uint32_t>(zero);
  }
  return wrong;
}

}  // namespace

int main() {
  long divided = 0;
  const long wrong_checked = count_wrong_checked(100'000'000, divided);
  if (wrong_checked != 0 || divided < 30'000'000) {
    std::printf("wrong: %ld of %ld checked quotients\n", wrong_checked, divided);
    return 1;
  }
  const long wrong_11_bits = count_wrong_11_bits();
  const long wrong_float32 = count_wrong_float32(200'000'000);
  std::printf("wrong: %ld of 2^33 with 11 bits, %ld of 2e8 in float32\n", wrong_11_bits, wrong_float32);
  return wrong_11_bits != 0 || wrong_float32 != 0;
}
