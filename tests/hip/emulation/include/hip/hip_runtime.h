// Stands in for HIP's header of this name when kernels are compiled for the CPU. Types are those of HIP's own headers.
#pragma once

#include <hip/hip_common.h>
// Vectors as device code sees them: their members are plain.
#undef __HIP_CLANG_ONLY__
#define __HIP_CLANG_ONLY__ 1
#include <hip/hip_runtime_api.h>
#include <hip/hip_vector_types.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation/execution.h"

#undef __shared__
// Shared memory is static: one thread block runs at a time. The section lets the emulation fill all of it, and
// `used` keeps the compiler from relying on what the program alone stores.
#define __shared__ static __attribute__((section("multikv_lds"), used))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx (::multikv::emulation::lane.thread)
#define blockIdx (::multikv::emulation::lane.block)
#define blockDim (::multikv::emulation::lane.block_size)
#define gridDim (::multikv::emulation::lane.grid_size)

// These functions are inlined, so that the place of a call is a place in the kernel.
#define MULTIKV_INTRINSIC [[clang::always_inline]] inline

MULTIKV_INTRINSIC void __syncthreads() { multikv::emulation::wait_for_block(); }
MULTIKV_INTRINSIC unsigned __lane_id() { return multikv::emulation::lane.index; }
MULTIKV_INTRINSIC uint64_t __ballot(int predicate) { return multikv::emulation::ballot(predicate != 0); }

namespace multikv::emulation {
// Returns the value of lane `source` of the wave.
template <class T>
MULTIKV_INTRINSIC T read_lane(T value, unsigned source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace multikv::emulation

template <class T>
MULTIKV_INTRINSIC T __shfl(T value, int source, int width) {
  const unsigned self = __lane_id(), mask = static_cast<unsigned>(width) - 1;
  return multikv::emulation::read_lane(value, (self & ~mask) | (static_cast<unsigned>(source) & mask));
}
template <class T>
MULTIKV_INTRINSIC T __shfl_xor(T value, int mask, int width) {
  const unsigned self = __lane_id(), source = self ^ static_cast<unsigned>(mask);
  const bool is_inside = (self & -static_cast<unsigned>(width)) == (source & -static_cast<unsigned>(width));
  return multikv::emulation::read_lane(value, is_inside ? source : self);
}

MULTIKV_INTRINSIC float __fadd_rn(float a, float b) { return a + b; }
MULTIKV_INTRINSIC float __fsub_rn(float a, float b) { return a - b; }
MULTIKV_INTRINSIC float __fmul_rn(float a, float b) { return a * b; }
MULTIKV_INTRINSIC float __fdiv_rn(float a, float b) { return a / b; }
MULTIKV_INTRINSIC float __fdividef(float a, float b) { return a / b; }
MULTIKV_INTRINSIC float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MULTIKV_INTRINSIC uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
MULTIKV_INTRINSIC float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
MULTIKV_INTRINSIC int __popc(uint32_t x) { return std::popcount(x); }
MULTIKV_INTRINSIC int __clz(uint32_t x) { return std::countl_zero(x); }
MULTIKV_INTRINSIC uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(uint64_t{a} * b >> 32); }
MULTIKV_INTRINSIC uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Byte i of the result is byte `digit i of selector` of the eight bytes of a and b.
MULTIKV_INTRINSIC uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
template <class T>
MULTIKV_INTRINSIC T min(T a, T b) {
  return std::min(a, b);
}
template <class T>
MULTIKV_INTRINSIC T max(T a, T b) {
  return std::max(a, b);
}
