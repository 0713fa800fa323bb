// All that is AMD-specific in kernels. ../cuda/gpu.cuh offers the same interface for NVIDIA.
#pragma once

#include <hip/hip_runtime.h>

#include <cstdint>

#include "core/fp8.h"

namespace multikv::gpu {

// Kernel parameters are in constant memory as they are.
#define MULTIKV_GRID_CONSTANT
// Threads of a block at most, and how many blocks a compute unit should have registers for: HIP asks for waves (of 64)
// on each of its four SIMD units.
#define MULTIKV_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, (threads) * (blocks) / 256)

// Threads cooperate in groups of 32 on every GPU. The mask of the lanes of the caller's group for which `predicate`
// holds; all 32 must call. A wave of 64 holds two groups: the caller's is one half of the wave's mask, whatever the
// other does.
__device__ inline uint32_t ballot(bool predicate) {
  const uint64_t wave = __ballot(predicate);
  return static_cast<uint32_t>(wave >> (__lane_id() & 32));
}

__device__ inline uint64_t high_product(uint64_t a, uint64_t b) { return __umul64hi(a, b); }
__device__ inline uint32_t high_product(uint32_t a, uint32_t b) { return __umulhi(a, b); }

// Accesses, of 8 or 16 bytes, to memory that is touched once: it gives way to other memory in the caches.
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

// A value of another lane of the group, whose lanes must all call.
template <class T>
__device__ inline T shuffle(T value, int lane) {
  return __shfl(value, lane, 32);
}
__device__ inline float shuffle_xor(float value, int mask) { return __shfl_xor(value, mask, 32); }

__device__ inline float half_to_float(uint16_t bits) { return static_cast<float>(__builtin_bit_cast(_Float16, bits)); }
// Two floats, rounded, side by side; `low` in the low half.
__device__ inline uint32_t floats_to_half(float low, float high) {
  return __builtin_bit_cast(uint16_t, static_cast<_Float16>(low)) |
         static_cast<uint32_t>(__builtin_bit_cast(uint16_t, static_cast<_Float16>(high))) << 16;
}
__device__ inline uint32_t floats_to_bfloat16(float low, float high) {
  return bfloat16_from_float(low) | static_cast<uint32_t>(bfloat16_from_float(high)) << 16;
}

// GPUs with instructions that convert to fp8 have them for one kind of it.
#if defined(__gfx940__) || defined(__gfx941__) || defined(__gfx942__)
#define MULTIKV_CONVERTS_TO_FNUZ true
#elif defined(__gfx950__) || defined(__gfx1200__) || defined(__gfx1201__)
#define MULTIKV_CONVERTS_TO_FNUZ false
#endif

// Whether this GPU has an instruction for the format; where it has none, fp8.h computes the code.
template <CacheFormat kFormat>
__device__ constexpr bool has_fp8_instruction() {
#ifdef MULTIKV_CONVERTS_TO_FNUZ
  return layout_of(kFormat).fnuz == MULTIKV_CONVERTS_TO_FNUZ;
#else
  return false;
#endif
}

// The floats of two codes by that instruction, the low byte's in x.
template <CacheFormat kFormat>
__device__ inline float2 convert_from_fp8([[maybe_unused]] uint16_t codes) {
#ifdef MULTIKV_CONVERTS_TO_FNUZ
  if constexpr (layout_of(kFormat).mantissa_bits == 3) {
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

// The codes of two floats by that instruction, `low` in the low byte.
//
// As AMD documents it, it rounds to nearest even, to subnormals too, and fnuz has no -0. What becomes of overflow
// depends on a mode, and of NaN on the GPU: neither is left to it. (Never run on such a GPU so far; tests/test_fp8.py
// tries every rounding there.)
template <CacheFormat kFormat>
__device__ inline uint32_t convert_to_fp8([[maybe_unused]] float low, [[maybe_unused]] float high) {
#ifdef MULTIKV_CONVERTS_TO_FNUZ
  constexpr Fp8Layout layout = layout_of(kFormat);
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
