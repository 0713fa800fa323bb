// From formats that are known at run time to the functions that are compiled for each; quantise.h has the other way.
#pragma once

#include "cpu/isa/codec/convert.h"

namespace multikv::cpu {
namespace {

using Dequantise = void (*)(char* to, const char* from, int64_t count, float scale, Stores stores, const char* next);

template <CacheFormat kFormat, class Output>
void dequantise_bytes(char* to, const char* from, int64_t count, float scale, Stores stores, const char* next) {
  dequantise<kFormat>(reinterpret_cast<Output*>(to), reinterpret_cast<const uint8_t*>(from), count, scale, stores,
                      next);
}

template <CacheFormat kFormat>
Dequantise dequantise_to(Float dtype) {
  switch (dtype) {
    case Float::kFloat32: return dequantise_bytes<kFormat, float>;
    case Float::kFloat16: return dequantise_bytes<kFormat, Half>;
    case Float::kBFloat16: break;
  }
  return dequantise_bytes<kFormat, BFloat16>;
}

// nullptr for kSame.
inline Dequantise dequantise_for(CacheFormat format, Float dtype) {
  switch (format) {
    case CacheFormat::kSame: return nullptr;
    case CacheFormat::kE5M2: return dequantise_to<CacheFormat::kE5M2>(dtype);
    case CacheFormat::kE4M3FNUZ: return dequantise_to<CacheFormat::kE4M3FNUZ>(dtype);
    case CacheFormat::kE5M2FNUZ: return dequantise_to<CacheFormat::kE5M2FNUZ>(dtype);
    case CacheFormat::kE4M3FN: break;
  }
  return dequantise_to<CacheFormat::kE4M3FN>(dtype);
}

}  // namespace
}  // namespace multikv::cpu
