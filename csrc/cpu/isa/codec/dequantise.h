// Dequantises rows of elements whose type, and the dtype of the output, are known at run time.
#pragma once

#include "cpu/isa/codec/convert.h"
#include "cpu/isa/codec/matrix.h"

namespace multikv::cpu {
namespace {

using Dequantise = void (*)(char* to, const char* from, const Matrix& rows, float scale, Stores stores);

template <Element kElement, FloatElement Output>
void dequantise_rows(char* to, const char* from, const Matrix& rows, float scale, Stores stores) {
  with_dequantiser<kElement, Output>(scale, [&](const auto& dequantise_row) {
    for (int64_t i = 0; i < rows.num_rows; ++i, to += rows.to_stride, from += rows.from_stride) {
      dequantise_row(reinterpret_cast<Output*>(to), reinterpret_cast<const uint8_t*>(from), rows.count, stores,
                     rows.next(from));
    }
  });
}

// `element` is an fp8 element.
inline Dequantise dequantise_for(Element element, Float dtype) {
  return with_fp8(element, [&]<Element kElement>() {
    return with_float(dtype, [&]<FloatElement Output>() -> Dequantise { return dequantise_rows<kElement, Output>; });
  });
}

}  // namespace
}  // namespace multikv::cpu
