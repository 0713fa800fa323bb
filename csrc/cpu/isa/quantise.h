// From formats that are known at run time to the functions that are compiled for each.
#pragma once

#include "convert.h"

namespace multikv::cpu {
namespace {

using Quantise = void (*)(char* to, const char* from, int64_t count, float scale, Stores stores);

template <CacheFormat kFormat, class Input>
void quantise_bytes(char* to, const char* from, int64_t count, float scale, Stores stores) {
  quantise<kFormat>(reinterpret_cast<uint8_t*>(to), reinterpret_cast<const Input*>(from), count, scale, stores);
}

template <CacheFormat kFormat>
Quantise quantise_from(Float dtype) {
  switch (dtype) {
    case Float::kFloat32: return quantise_bytes<kFormat, float>;
    case Float::kFloat16: return quantise_bytes<kFormat, Half>;
    case Float::kBFloat16: break;
  }
  return quantise_bytes<kFormat, BFloat16>;
}

// nullptr for kSame.
inline Quantise quantise_for(CacheFormat format, Float dtype) {
  switch (format) {
    case CacheFormat::kSame: return nullptr;
    case CacheFormat::kE5M2: return quantise_from<CacheFormat::kE5M2>(dtype);
    case CacheFormat::kE4M3FNUZ: return quantise_from<CacheFormat::kE4M3FNUZ>(dtype);
    case CacheFormat::kE5M2FNUZ: return quantise_from<CacheFormat::kE5M2FNUZ>(dtype);
    case CacheFormat::kE4M3FN: break;
  }
  return quantise_from<CacheFormat::kE4M3FN>(dtype);
}

}  // namespace
}  // namespace multikv::cpu
