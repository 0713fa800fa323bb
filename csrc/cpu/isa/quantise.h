// From formats and scales that are known at run time to the functions that are compiled for them.
#pragma once

#include "convert.h"

namespace multikv::cpu {
namespace {

// Rows of `count` numbers, so many bytes apart on either side.
struct Matrix {
  int64_t count, num_rows = 1, to_stride = 0, from_stride = 0;
  int64_t ahead = 0;  // what will be read after a row lies so many bytes behind its start
};

using Quantise = void (*)(char* to, const char* from, const Matrix& matrix, float scale, Stores stores);

// Scales by which a cache write divides: num_scales of them, `stride` apart.
struct Scales {
  const float* data;
  int64_t stride, num_scales;
};

template <CacheFormat kFormat, class Input>
void quantise_bytes(char* to, const char* from, const Matrix& matrix, float scale, Stores stores) {
  for (int64_t row = 0; row < matrix.num_rows; ++row, to += matrix.to_stride, from += matrix.from_stride) {
    quantise<kFormat>(reinterpret_cast<uint8_t*>(to), reinterpret_cast<const Input*>(from), matrix.count, scale,
                      stores);
  }
}

#ifdef MULTIKV_HAS_LANES

template <CacheFormat kFormat, class Input, int kSteps>
void encode_bytes(char* to, const char* from, const Matrix& matrix, float scale, Stores stores) {
  const Encoder<kFormat, Input, kSteps> encode(scale);
  for (int64_t row = 0; row < matrix.num_rows; ++row, to += matrix.to_stride, from += matrix.from_stride) {
    convert_with(encode, reinterpret_cast<uint8_t*>(to), reinterpret_cast<const Input*>(from), matrix.count, stores,
                 from + matrix.ahead);
  }
}

// What quantise() finds out about its scale is found out here once for all calls.
template <CacheFormat kFormat, class Input>
Quantise quantise_by(const Scales& scales) {
  constexpr int kSignificantBits = std::is_same_v<Input, float> ? 24 : std::is_same_v<Input, Half> ? 11 : 8;
  bool suffices = kSignificantBits < 24;
  for (int64_t i = 0; i < scales.num_scales; ++i) {
    const float scale = scales.data[i * scales.stride];
    if (!encoder_takes(scale)) return quantise_bytes<kFormat, Input>;
    if constexpr (kSignificantBits < 24) suffices = suffices && estimate_suffices<kSignificantBits>(scale);
  }
  if constexpr (kSignificantBits == 24) return encode_bytes<kFormat, Input, 2>;
  else return suffices ? encode_bytes<kFormat, Input, 0> : encode_bytes<kFormat, Input, 1>;
}

#else

template <CacheFormat kFormat, class Input>
Quantise quantise_by(const Scales&) {
  return quantise_bytes<kFormat, Input>;
}

#endif

template <CacheFormat kFormat>
Quantise quantise_from(Float dtype, const Scales& scales) {
  switch (dtype) {
    case Float::kFloat32: return quantise_by<kFormat, float>(scales);
    case Float::kFloat16: return quantise_by<kFormat, Half>(scales);
    case Float::kBFloat16: break;
  }
  return quantise_by<kFormat, BFloat16>(scales);
}

// For these scales only. nullptr for kSame, which has none.
inline Quantise quantise_for(CacheFormat format, Float dtype, const Scales& scales) {
  switch (format) {
    case CacheFormat::kSame: return nullptr;
    case CacheFormat::kE5M2: return quantise_from<CacheFormat::kE5M2>(dtype, scales);
    case CacheFormat::kE4M3FNUZ: return quantise_from<CacheFormat::kE4M3FNUZ>(dtype, scales);
    case CacheFormat::kE5M2FNUZ: return quantise_from<CacheFormat::kE5M2FNUZ>(dtype, scales);
    case CacheFormat::kE4M3FN: break;
  }
  return quantise_from<CacheFormat::kE4M3FN>(dtype, scales);
}

}  // namespace
}  // namespace multikv::cpu
