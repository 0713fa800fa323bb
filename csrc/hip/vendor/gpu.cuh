// Everything in kernels that is specific to AMD. cuda/vendor/gpu.cuh has the same interface for NVIDIA.
#pragma once

#include <hip/hip_runtime.h>

#include <cstdint>

#include "core/fp8.h"

namespace multikv::gpu {

// Empty: on AMD, kernel parameters are in constant memory in any case.
#define MULTIKV_GRID_CONSTANT
// The maximum number of threads of a thread block, and the minimum number of resident thread blocks per compute unit.
// HIP takes the latter as a number of waves (of 64 threads) on each of the four SIMD units of a compute unit.
#define MULTIKV_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, (threads) * (blocks) / 256)

// A warp is 32 neighbouring threads on every GPU; its threads are called lanes. A wave of 64 threads holds two warps.

// The mask of the lanes of the caller's warp for which `predicate` holds. All lanes must call. It is one half of the
// mask of a wave of 64 threads, and does not depend on the other half.
__device__ inline uint32_t ballot(bool predicate) {
  const uint64_t wave = __ballot(predicate);
  return static_cast<uint32_t>(wave >> (__lane_id() & 32));
}

// Returns the upper half of a * b.
__device__ inline uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
__device__ inline uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Streaming loads and stores of 8 or 16 bytes, for memory that is touched once: caches evict it first.
template <class Vec>
using Words = uint32_t __attribute__((ext_vector_type(sizeof(Vec) / 4)));
template <class Vec>
__device__ inline Vec load_once(const Vec* from) {
  return __builtin_bit_cast(Vec, __builtin_nontemporal_load(reinterpret_cast<const Words<Vec>*>(from)));
}
template <class Vec>
__device__ inline void store_once(Vec* to, const Vec& vec) {
  __builtin_nontemporal_store(__builtin_bit_cast(Words<Vec>, vec), reinterpret_cast<Words<Vec>*>(to));
}

// Returns the value of another lane of the warp: of `lane`, or of the caller's own lane ^ mask. All lanes must call.
template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl(value, lane, 32);
}
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor(value, mask, 32); }

// Returns 2^x with an error of a few units in the last place. A subnormal result may be 0.
__device__ inline float exp2_approximate(float x) { return exp2f(x); }

__device__ inline float half_to_float(uint16_t bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }
// Rounds two floats to nearest even; `low` goes to the low half of the word.
__device__ inline uint32_t floats_to_half(float low, float high) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(low)) |
         static_cast<uint32_t>(__builtin_bit_cast(uint16_t, static_cast<_Float16>(high))) << 16;
}
__device__ inline uint32_t floats_to_bfloat16(float low, float high) {
  return bfloat16_from_float(low) | static_cast<uint32_t>(bfloat16_from_float(high)) << 16;
}

// Arithmetic on two numbers at a time, in the low and in the high half of a word. Every result is rounded once, and
// products are never fused with sums. For bfloat16, float32 holds products exactly, and rounding a sum twice gives the
// same as rounding it once.
using Halves = _Float16 __attribute__((ext_vector_type(2)));
__device__ inline uint32_t multiply_halves(uint32_t a, uint32_t b) {
  return __builtin_bit_cast(uint32_t, __builtin_bit_cast(Halves, a) * __builtin_bit_cast(Halves, b));
}
__device__ inline uint32_t add_halves(uint32_t a, uint32_t b) {
  return __builtin_bit_cast(uint32_t, __builtin_bit_cast(Halves, a) + __builtin_bit_cast(Halves, b));
}
__device__ inline float low_bfloat16(uint32_t word) { return __builtin_bit_cast(float, word << 16); }
__device__ inline float high_bfloat16(uint32_t word) { return __builtin_bit_cast(float, word & 0xffff0000u); }
__device__ inline uint32_t multiply_bfloat16s(uint32_t a, uint32_t b) {
  return floats_to_bfloat16(low_bfloat16(a) * low_bfloat16(b), high_bfloat16(a) * high_bfloat16(b));
}
__device__ inline uint32_t add_bfloat16s(uint32_t a, uint32_t b) {
  return floats_to_bfloat16(low_bfloat16(a) + low_bfloat16(b), high_bfloat16(a) + high_bfloat16(b));
}

// A GPU that has instructions for fp8 has them either for the fnuz types, or for e4m3fn and e5m2.
#if defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
#define MULTIKV_CONVERTS_TO_FNUZ true
#elif defined(__gfx950__) || defined(__gfx1200__) || defined(__gfx1201__)
#define MULTIKV_CONVERTS_TO_FNUZ false
#endif

// Whether this GPU has instructions that convert to and from the fp8 type kElement. Without them, kernels use the
// functions of core/fp8.h.
template <Element kElement>
__device__ constexpr bool has_fp8_instruction() {
#ifdef MULTIKV_CONVERTS_TO_FNUZ
  return layout_of(kElement).fnuz == MULTIKV_CONVERTS_TO_FNUZ;
#else
  return false;
#endif
}

// Decodes two codes by the GPU's instruction; x is the float of the low byte.
template <Element kElement>
__device__ inline float2 convert_from_fp8([[maybe_unused]] uint16_t codes) {
#ifdef MULTIKV_CONVERTS_TO_FNUZ
  if constexpr (layout_of(kElement).mantissa_bits == 3) {
    const auto floats = __builtin_amdgcn_cvt_pk_f32_fp8(codes, false);
    return {floats[0], floats[1]};
  } else {
    const auto floats = __builtin_amdgcn_cvt_pk_f32_bf8(codes, false);
    return {floats[0], floats[1]};
  }
#else
  return {};
#endif
}

// Encodes two floats by the GPU's instruction, `low` in the low byte.
//
// AMD documents that the instruction rounds to nearest even, also to subnormals, and never returns a fnuz -0. Its
// result for an overflow depends on a mode of the GPU, and its result for a NaN depends on the GPU, so that both are
// handled here. This code has not run yet on a GPU with the instruction. The tests of fp8 try every rounding when they
// run on one.
template <Element kElement>
__device__ inline uint32_t convert_to_fp8([[maybe_unused]] float low, [[maybe_unused]] float high) {
#ifdef MULTIKV_CONVERTS_TO_FNUZ
  constexpr Fp8Layout layout = layout_of(kElement);
  constexpr float kMax = std::bit_cast<float>(layout.max_bits);
  constexpr uint32_t kNan = layout.fnuz ? 0x80 : 0x7f;
  const float low_clamped = __builtin_amdgcn_fmed3f(low, -kMax, kMax);
  const float high_clamped = __builtin_amdgcn_fmed3f(high, -kMax, kMax);
  uint32_t codes;
  if constexpr (layout.mantissa_bits == 3) {
    codes = __builtin_amdgcn_cvt_pk_fp8_f32(low_clamped, high_clamped, 0, false);
  } else {
    codes = __builtin_amdgcn_cvt_pk_bf8_f32(low_clamped, high_clamped, 0, false);
  }
  if (low != low) codes = (codes & 0xff00) | kNan;
  if (high != high) codes = (codes & 0x00ff) | kNan << 8;
  return codes;
#else
  return 0;
#endif
}

}  // namespace multikv::gpu
