// Vectors: loads and stores of 1 to 16 bytes, and the conversion of what they hold to and from fp8.
#pragma once

#include "core/quotient.h"
#include "vendor/gpu.cuh"

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

// kBytes of elements side by side, moved by accesses of up to 16 bytes. kOnce: see load_once.
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

// Four bytes at any address.
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

// Two floats as elements of a 16-bit type, rounded, side by side.
template <Float kDtype>
__device__ inline uint32_t rounded(float low, float high) {
  return kDtype == Float::kBFloat16 ? floats_to_bfloat16(low, high) : floats_to_half(low, high);
}

// Elements of type `kDtype` from floats: value(0), value(1), ...
template <Float kDtype, int kCount, class Value>
__device__ inline Pack<kCount* static_cast<int>(num_bytes(kDtype))> pack_floats(Value value) {
  Pack<kCount* static_cast<int>(num_bytes(kDtype))> out;
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

// Calls with<kFormat>() for the format, which is known at run time only and the same for all threads: formats with an
// instruction have a path each, the others share other().
template <CacheFormat kFormat = CacheFormat::kE4M3FN, class With, class Other>
__device__ inline auto with_format(CacheFormat format, With with, Other other) {
  if constexpr (has_fp8_instruction<kFormat>()) {
    if (format == kFormat) return with.template operator()<kFormat>();
  }
  if constexpr (kFormat < CacheFormat::kE5M2FNUZ) {
    constexpr auto kNext = static_cast<CacheFormat>(static_cast<int>(kFormat) + 1);
    return with_format<kNext>(format, with, other);
  } else {
    return other();
  }
}

// kCount codes of the quotients value(0), value(1), ...; kCount: 1, or a multiple of 4. `encode` gives the codes of two
// floats, the first in the low byte.
template <int kCount, class Value, class Encode>
__device__ inline Pack<kCount> encode_with(Value value, Encode encode) {
  Pack<kCount> out;
  if constexpr (kCount == 1) {
    out.words[0] = encode(value(0), 0.0f);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint32_t low = encode(value(i), value(i + 1));
      out.words[i / 4] = low | encode(value(i + 2), value(i + 3)) << 16;
    }
  }
  return out;
}

template <Float kDtype>
__device__ inline float divide(const Quotient& quotient, float x) {
  constexpr int kSteps = kDtype == Float::kFloat32 ? 2 : 1;
  return quotient.divide<kSteps>(x, [](float a, float b, float c) { return fmaf(a, b, c); });
}

// kCount elements, divided by `by_scale` and encoded.
template <Float kDtype, int kCount, class Divide>
__device__ inline Pack<kCount> quantise(const uint32_t* words, CacheFormat format, Divide by_scale) {
  const auto divided = [&](int i) { return by_scale(element<kDtype>(words, i)); };
  return with_format(
      format, [&]<CacheFormat kFormat>() { return encode_with<kCount>(divided, convert_to_fp8<kFormat>); },
      [&] {
        return encode_with<kCount>(divided, [layout = layout_of(format)](float low, float high) {
          return encode_fp8(low, layout) | static_cast<uint32_t>(encode_fp8(high, layout)) << 8;
        });
      });
}

// kCount codes, decoded and multiplied.
template <Float kDtype, int kCount>
__device__ inline Pack<kCount* static_cast<int>(num_bytes(kDtype))> dequantise(const uint32_t* words, float scale,
                                                                               CacheFormat format) {
  float decoded[kCount + kCount % 2];
  const auto decode_with = [&](auto decode) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float2 pair = decode(static_cast<uint16_t>(words[i / 4] >> (i % 4 * 8)));
      decoded[i] = pair.x;
      decoded[i + 1] = pair.y;
    }
  };
  with_format(
      format, [&]<CacheFormat kFormat>() { decode_with(convert_from_fp8<kFormat>); },
      [&] {
        decode_with([layout = layout_of(format)](uint16_t codes) -> float2 {
          return {decode_fp8(static_cast<uint8_t>(codes), layout),
                  decode_fp8(static_cast<uint8_t>(codes >> 8), layout)};
        });
      });
  return pack_floats<kDtype, kCount>([&](int i) { return decoded[i] * scale; });
}

}  // namespace multikv::gpu
