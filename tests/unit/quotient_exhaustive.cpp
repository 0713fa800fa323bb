// Compares Quotient with IEEE division for every pair of a float32 significand (the scale) and an 11-bit one (float16,
// bfloat16), and for every scale with the float32 numbers whose quotients are next to a midpoint between fp8 numbers.
// Powers of two only shift both sides. Compares NearOneQuotient with it for every divisor and significand, and
// CheckedQuotient for random float32 pairs. Exit code 0: no difference.
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
      here += quotient.divide(x, fused) != x / scale;
    }
    wrong += here;
  }
  return wrong;
}

// Midpoints have at most 5 significant bits. A quotient that is not among the 7 numbers that are tried is too far from
// the midpoint for an error of one unit in the last place to matter.
long count_wrong_float32() {
  long wrong = 0;
  for (uint32_t m = 0; m < (1u << 23); ++m) {
    const float scale = std::bit_cast<float>(0x3f800000u | m);
    const multikv::Quotient quotient(scale);
    int here = 0;
    for (int i = 16; i < 32; ++i) {
      const auto midpoint = static_cast<float>(i);
      const uint32_t at = std::bit_cast<uint32_t>(midpoint * scale) - 3;
      for (uint32_t k = 0; k < 7; ++k) {
        const float x = std::bit_cast<float>(at + k), ieee = x / scale, ours = quotient.divide(x, fused);
        here += (ours < midpoint) != (ieee < midpoint) || (ours > midpoint) != (ieee > midpoint);
      }
    }
    wrong += here;
  }
  return wrong;
}

// Returns -1 if takes() accepts another number of divisors than expected.
long count_wrong_near_one() {
  long wrong = 0;
  int divisors = 0;
  for (uint32_t bits = 0x3f800000u - 100; bits <= 0x3f800000u + 100; ++bits) {
    const float divisor = std::bit_cast<float>(bits);
    if (!multikv::NearOneQuotient::takes(divisor)) continue;
    ++divisors;
    const multikv::NearOneQuotient quotient(divisor, fused);
    const auto check = [&](float x) {
      if (quotient.can_divide(x)) {
        wrong += std::bit_cast<uint32_t>(quotient.divide(x, fused)) != std::bit_cast<uint32_t>(x / divisor);
      }
    };
    for (uint32_t m = 0; m < (1u << 23); ++m) {
      for (const uint32_t exponent : {0x3f800000u, 0x7f000000u, 0x1f800000u}) {  // 1, the largest, 2^-64
        check(std::bit_cast<float>(exponent | m));
      }
    }
    for (const float x : {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF}) check(x);
  }
  return divisors == 25 ? wrong : -1;
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
  const long wrong_11_bits = count_wrong_11_bits(), wrong_float32 = count_wrong_float32();
  const long wrong_near_one = count_wrong_near_one();
  std::printf("wrong: %ld with 11 bits, %ld in float32, %ld near one\n", wrong_11_bits, wrong_float32, wrong_near_one);
  return wrong_11_bits != 0 || wrong_float32 != 0 || wrong_near_one != 0;
}
