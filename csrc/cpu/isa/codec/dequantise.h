// Chooses the instance of dequantise() for an element and a dtype that are known at run time.
#pragma once

#include "cpu/isa/codec/convert.h"

namespace multikv::cpu {
namespace {

using Dequantise = void (*)(char* to, const char* from, int64_t count, float scale, Stores stores, const char* next);

template <Element kElement, FloatElement Output>
void dequantise_bytes(char* to, const char* from, int64_t count, float scale, Stores stores, const char* next) {
  dequantise<kElement>(reinterpret_cast<Output*>(to), reinterpret_cast<const uint8_t*>(from), count, scale, stores,
                       next);
}

// `element` is an fp8 element.
inline Dequantise dequantise_for(Element element, Float dtype) {
  return with_fp8(element, [&]<Element kElement>() {
    return with_float(dtype, [&]<FloatElement Output>() -> Dequantise { return dequantise_bytes<kElement, Output>; });
  });
}

}  // namespace
}  // namespace multikv::cpu
