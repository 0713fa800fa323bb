// Everything in kernels that is specific to NVIDIA. hip/vendor/gpu.cuh has the same interface for AMD.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "core/fp8.h"

namespace multikv::gpu {

// Keeps a kernel parameter in constant memory, even if the kernel takes its address.
#define MULTIKV_GRID_CONSTANT __grid_constant__
// The maximum number of threads of a thread block, and the minimum number of resident thread blocks per multiprocessor.
#define MULTIKV_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)

// A warp is 32 neighbouring threads on every GPU; its threads are called lanes.

// The mask of the lanes of the caller's warp for which `predicate` holds. All lanes must call.
__device__ inline uint32_t ballot(bool predicate) { return __ballot_sync(0xffffffffu, predicate); }

// Returns the upper half of a * b.
__device__ inline uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
__device__ inline uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Streaming loads and stores of 8 or 16 bytes, for memory that is touched once: caches evict it first.
template <class Vec>
__device__ inline Vec load_once(const Vec* from) {
  if constexpr (sizeof(Vec) == 16) {
    const uint4 words = __ldcs(reinterpret_cast<const uint4*>(from));
    return {words.x, words.y, words.z, words.w};
  } else {
    const uint2 words = __ldcs(reinterpret_cast<const uint2*>(from));
    return {words.x, words.y};
  }
}
template <class Vec>
__device__ inline void store_once(Vec* to, const Vec& vec) {
  if constexpr (sizeof(Vec) == 16) __stcs(reinterpret_cast<uint4*>(to), make_uint4(vec.x, vec.y, vec.z, vec.w));
  else __stcs(reinterpret_cast<uint2*>(to), make_uint2(vec.x, vec.y));
}

// Returns the value of another lane of the warp: of `lane`, or of the caller's own lane ^ mask. All lanes must call.
template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Returns 2^x with an error of at most 2 units in the last place. A subnormal result may be 0.
__device__ inline float exp2_approximate(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

__device__ inline float half_to_float(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
// Rounds two floats to nearest even; `low` goes to the low half of the word.
__device__ inline uint32_t floats_to_half(float low, float high) {
  const __half2 halves = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(halves);
}
__device__ inline uint32_t floats_to_bfloat16(float low, float high) {
  const __nv_bfloat162 halves = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(halves);
}

// Arithmetic on two numbers at a time, in the low and in the high half of a word. Every result is rounded once, and
// products are never fused with sums.
__device__ inline uint32_t multiply_halves(uint32_t a, uint32_t b) {
  const __half2 product = __hmul2_rn(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const uint32_t&>(product);
}
__device__ inline uint32_t add_halves(uint32_t a, uint32_t b) {
  const __half2 sum = __hadd2_rn(reinterpret_cast<const __half2&>(a), reinterpret_cast<const __half2&>(b));
  return reinterpret_cast<const uint32_t&>(sum);
}
__device__ inline uint32_t multiply_bfloat16s(uint32_t a, uint32_t b) {
  const __nv_bfloat162 product =
      __hmul2_rn(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(product);
}
__device__ inline uint32_t add_bfloat16s(uint32_t a, uint32_t b) {
  const __nv_bfloat162 sum =
      __hadd2_rn(reinterpret_cast<const __nv_bfloat162&>(a), reinterpret_cast<const __nv_bfloat162&>(b));
  return reinterpret_cast<const uint32_t&>(sum);
}

// Whether this GPU has instructions that convert to and from the fp8 type kElement. Without them, kernels use the
// functions of core/fp8.h.
template <Element kElement>
__device__ constexpr bool has_fp8_instruction() {
#if __CUDA_ARCH__ >= 890
  return kElement == Element::kE4M3FN || kElement == Element::kE5M2;
#else
  return false;
#endif
}

// Decodes two codes by the GPU's instruction; x is the float of the low byte. The instruction returns float16 numbers,
// which is exact: every fp8 number is a float16 number.
template <Element kElement>
__device__ inline float2 convert_from_fp8(uint16_t codes) {
  uint32_t halves;
  if constexpr (kElement == Element::kE4M3FN) {
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"(codes));
  } else {
    asm("cvt.rn.f16x2.e5m2x2 %0, %1;" : "=r"(halves) : "h"(codes));
  }
  return {half_to_float(static_cast<uint16_t>(halves)), half_to_float(static_cast<uint16_t>(halves >> 16))};
}

// Encodes two floats by the GPU's instruction, `low` in the low byte. The instruction saturates, and encodes NaN as
// 0x7f.
template <Element kElement>
__device__ inline uint32_t convert_to_fp8(float low, float high) {
  uint16_t codes;
  if constexpr (kElement == Element::kE4M3FN) {
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(codes) : "f"(high), "f"(low));
  }
  return codes;
}

}  // namespace multikv::gpu
