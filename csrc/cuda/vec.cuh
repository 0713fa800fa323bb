// Vectors: loads and stores of 1 to 16 bytes, and their conversion to fp8.
#pragma once

#include "../quotient.h"
#include "gpu.cuh"

namespace multikv::gpu {

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

template <int kBytes>
__device__ inline Vec<kBytes> load(const char* from) {
  return *reinterpret_cast<const Vec<kBytes>*>(from);
}

template <int kBytes>
__device__ inline void store(char* to, const Vec<kBytes>& value) {
  *reinterpret_cast<Vec<kBytes>*>(to) = value;
}

// The i-th element of 32-bit words that hold elements of type `kDtype` side by side.
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

// kCount elements, divided and encoded. kCount: 1, or a multiple of 4. `encode` gives the codes of two floats, the first
// in the low byte.
template <Float kDtype, int kCount, class Encode>
__device__ inline Vec<kCount> quantise_with(const uint32_t* words, const Quotient& quotient, Encode encode) {
  const auto divided = [&](int i) {
    constexpr int kSteps = kDtype == Float::kFloat32 ? 2 : 1;
    return quotient.divide<kSteps>(element<kDtype>(words, i), [](float a, float b, float c) { return fmaf(a, b, c); });
  };
  union {
    Vec<kCount> vec;
    uint32_t codes[(kCount + 3) / 4];
  } out;
  if constexpr (kCount == 1) {
    out.codes[0] = encode(divided(0), 0.0f);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint32_t low = encode(divided(i), divided(i + 1));
      out.codes[i / 4] = low | encode(divided(i + 2), divided(i + 3)) << 16;
    }
  }
  return out.vec;
}

// The format is known at run time only, and the same for all threads: formats with an instruction have a path each, the others
// share one.
template <Float kDtype, int kCount, CacheFormat kFormat = CacheFormat::kE4M3FN>
__device__ inline Vec<kCount> quantise(const uint32_t* words, const Quotient& quotient, CacheFormat format) {
  if constexpr (has_fp8_instruction<kFormat>()) {
    if (format == kFormat) return quantise_with<kDtype, kCount>(words, quotient, convert_to_fp8<kFormat>);
  }
  if constexpr (kFormat < CacheFormat::kE5M2FNUZ) {
    constexpr auto kNext = static_cast<CacheFormat>(static_cast<int>(kFormat) + 1);
    return quantise<kDtype, kCount, kNext>(words, quotient, format);
  } else {
    return quantise_with<kDtype, kCount>(words, quotient, [layout = layout_of(format)](float low, float high) {
      return encode_fp8(low, layout) | static_cast<uint32_t>(encode_fp8(high, layout)) << 8;
    });
  }
}

}  // namespace multikv::gpu
