// Packs of contiguous elements: how they are loaded and stored, and the floats that they hold.
#pragma once

#include "core/format.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

// The 1 to 16 bytes that one instruction loads or stores.
template <int kBytes>
struct alignas(kBytes) Vec {
  uint8_t bytes[kBytes];
};
template <>
struct alignas(16) Vec<16> {
  uint32_t x, y, z, w;
};
template <>
struct alignas(8) Vec<8> {
  uint32_t x, y;
};
template <>
struct Vec<4> {
  uint32_t x;
};
template <>
struct Vec<2> {
  uint16_t x;
};

// kBytes of contiguous elements, loaded and stored by instructions of up to 16 bytes each. With kOnce, the memory is
// touched only once, and accesses of 8 and 16 bytes are streaming loads and stores.
template <int kBytes>
struct Pack {
  static constexpr int kAccess = kBytes < 16 ? kBytes : 16;
  using Access = Vec<kAccess>;
  union {
    Access accesses[kBytes / kAccess];
    uint32_t words[(kBytes + 3) / 4];
  };

  template <bool kOnce = false>
  __device__ static Pack read(const char* from) {
    Pack pack;
#pragma unroll
    for (int i = 0; i < kBytes / kAccess; ++i) {
      const auto* access = reinterpret_cast<const Access*>(from) + i;
      if constexpr (kOnce && kAccess >= 8) pack.accesses[i] = load_once(access);
      else pack.accesses[i] = *access;
    }
    return pack;
  }
  template <bool kOnce = false>
  __device__ void write(char* to) const {
#pragma unroll
    for (int i = 0; i < kBytes / kAccess; ++i) {
      auto* access = reinterpret_cast<Access*>(to) + i;
      if constexpr (kOnce && kAccess >= 8) store_once(access, accesses[i]);
      else *access = accesses[i];
    }
  }
};

// kCount elements of type kDtype.
template <Float kDtype, int kCount>
using FloatPack = Pack<kCount* static_cast<int>(num_bytes(kDtype))>;

// Load and store four bytes at an address that need not be aligned.
__device__ inline uint32_t load_word(const char* from) {
  if (reinterpret_cast<uintptr_t>(from) % 4 == 0) return *reinterpret_cast<const uint32_t*>(from);
  const auto* bytes = reinterpret_cast<const uint8_t*>(from);
  return bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24;
}
__device__ inline void store_word(char* to, uint32_t word) {
  if (reinterpret_cast<uintptr_t>(to) % 4 == 0) {
    *reinterpret_cast<uint32_t*>(to) = word;
  } else {
    for (int i = 0; i < 4; ++i) to[i] = static_cast<char>(word >> (8 * i));
  }
}

// Returns element i of 32-bit words that hold contiguous elements of type kDtype.
template <Float kDtype>
__device__ inline float element(const uint32_t* words, int i) {
  if constexpr (kDtype == Float::kFloat32) {
    return __uint_as_float(words[i]);
  } else if constexpr (kDtype == Float::kBFloat16) {
    return __uint_as_float(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u);
  } else {
    return half_to_float(static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16)));
  }
}

// Rounds two floats to the 16-bit type kDtype. `low` goes to the low half of the word.
template <Float kDtype>
__device__ inline uint32_t rounded(float low, float high) {
  return kDtype == Float::kBFloat16 ? floats_to_bfloat16(low, high) : floats_to_half(low, high);
}

// Products and sums of the two 16-bit floats of type kDtype in a word. They are the float32 result rounded to kDtype.
template <Float kDtype>
__device__ inline uint32_t multiply_words(uint32_t a, uint32_t b) {
  return kDtype == Float::kBFloat16 ? multiply_bfloat16s(a, b) : multiply_halves(a, b);
}
template <Float kDtype>
__device__ inline uint32_t add_words(uint32_t a, uint32_t b) {
  return kDtype == Float::kBFloat16 ? add_bfloat16s(a, b) : add_halves(a, b);
}

// Rounds the floats value(0), value(1), ... to elements of type kDtype.
template <Float kDtype, int kCount, class Value>
__device__ inline FloatPack<kDtype, kCount> pack_floats(Value value) {
  FloatPack<kDtype, kCount> out;
  if constexpr (kDtype == Float::kFloat32) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) out.words[i] = __float_as_uint(value(i));
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 2)
      out.words[i / 2] = rounded<kDtype>(value(i), i + 1 < kCount ? value(i + 1) : 0.0f);
  }
  return out;
}

}  // namespace multikv::gpu
