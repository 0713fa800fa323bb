// Division of indices by numbers that are known when a kernel is launched.
#pragma once

#include "core/divisor.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

// Returns x / divisor. If both fit into 32 bits, as nearly always, 32-bit products suffice, which take a quarter of the
// instructions. The upper half of the 64-bit reciprocal is the 32-bit reciprocal.
__device__ inline uint64_t quotient_of(uint64_t x, const Divisor& divisor) {
  if ((x | divisor.value) >> 32 != 0)
    return divisor.divide(x, [](uint64_t a, uint64_t b) { return high_product(a, b); });
  const auto low = static_cast<uint32_t>(x), value = static_cast<uint32_t>(divisor.value);
  const uint32_t estimate = high_product(low, static_cast<uint32_t>(divisor.reciprocal >> 32));
  return estimate + (low - estimate * value >= value);
}

// A divisor below 2^32, for dividends below 2^32.
struct Divisor32 {
  uint32_t value;
  uint32_t reciprocal;  // floor((2^32 - 1) / value)

  static constexpr Divisor32 of(int64_t value) {
    const auto narrow = static_cast<uint32_t>(value);
    return {narrow, ~uint32_t{0} / narrow};
  }
  __device__ uint32_t divide(uint32_t x) const {
    const uint32_t estimate = high_product(x, reciprocal);
    return estimate + (x - estimate * value >= value);
  }
};

// A divisor below 2^16, for dividends below 2^16.
struct SmallDivisor {
  int value;
  uint32_t reciprocal;  // 2^32 / value, rounded up; 0 for 1

  static constexpr SmallDivisor of(int64_t value) {
    return {static_cast<int>(value), value == 1 ? 0 : ~uint32_t{0} / static_cast<uint32_t>(value) + 1};
  }
  __device__ int divide(int x) const {
    return value == 1 ? x : static_cast<int>(high_product(static_cast<uint32_t>(x), reciprocal));
  }
};

}  // namespace multikv::gpu
