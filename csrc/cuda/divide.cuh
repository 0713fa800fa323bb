// Division of indices by what was known when the kernel was launched.
#pragma once

#include "gpu.cuh"

namespace multikv::gpu {

// x / divisor. Numbers that fit 32 bits, as nearly all do, take a quarter of the instructions: the upper half of a 64-bit
// reciprocal is the 32-bit one.
__device__ inline uint64_t quotient_of(uint64_t x, const Divisor& divisor) {
  if ((x | divisor.value) >> 32 != 0) return divisor.divide(x, [](uint64_t a, uint64_t b) { return high_product(a, b); });
  const auto low = static_cast<uint32_t>(x), value = static_cast<uint32_t>(divisor.value);
  const uint32_t estimate = high_product(low, static_cast<uint32_t>(divisor.reciprocal >> 32));
  return estimate + (low - estimate * value >= value);
}

}  // namespace multikv::gpu
