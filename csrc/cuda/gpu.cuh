// All that is NVIDIA-specific in kernels. ../hip/gpu.cuh offers the same interface for AMD.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "../fp8.h"

namespace multikv::gpu {

// Kernel parameters stay in constant memory, also when a kernel takes their address.
#define MULTIKV_GRID_CONSTANT __grid_constant__

// Threads cooperate in groups of 32 on every GPU. The mask of the lanes of the caller's group for which `predicate` holds;
// all 32 must call.
__device__ inline uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

__device__ inline uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }

__device__ inline float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

// Whether this GPU has an instruction for the format; where it has none, fp8.h computes the code.
template <CacheFormat kFormat>
__device__ constexpr bool has_fp8_instruction() {
#if __CUDA_ARCH__ >= 890
  return kFormat == CacheFormat::kE4M3FN || kFormat == CacheFormat::kE5M2;
#else
  return false;
#endif
}

// The codes of two floats by that instruction, `low` in the low byte. It saturates, and NaN becomes 0x7f.
template <CacheFormat kFormat>
__device__ inline uint32_t convert_to_fp8(float low, float high) {
  uint16_t codes;
  if constexpr (kFormat == CacheFormat::kE4M3FN) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  }
  return codes;
}

}  // namespace multikv::gpu
