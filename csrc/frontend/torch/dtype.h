// The dtypes of torch.
#pragma once

#include <cstdint>
#include <string>

#include "core/format.h"

namespace multikv {

// The dtypes that some op accepts. kOther stands for every other dtype of torch.
enum class Dtype : uint8_t {
  kOther,
  kFloat32,
  kFloat16,
  kBFloat16,
  kInt32,
  kInt64,
  kUInt8,
  kFloat8E4M3FN,
  kFloat8E5M2,
  kFloat8E4M3FNUZ,
  kFloat8E5M2FNUZ,
};

constexpr Dtype dtype_of(Element element) {
  switch (element) {
    case Element::kFloat32: return Dtype::kFloat32;
    case Element::kFloat16: return Dtype::kFloat16;
    case Element::kBFloat16: return Dtype::kBFloat16;
    case Element::kE4M3FN: return Dtype::kFloat8E4M3FN;
    case Element::kE5M2: return Dtype::kFloat8E5M2;
    case Element::kE4M3FNUZ: return Dtype::kFloat8E4M3FNUZ;
    case Element::kE5M2FNUZ: return Dtype::kFloat8E5M2FNUZ;
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  return Dtype::kOther;
}

constexpr Dtype dtype_of(Float dtype) { return dtype_of(element_of(dtype)); }

// Converts the number by which torch's C interface identifies a dtype.
Dtype dtype_of_number(int32_t number);

// Return the name that the dtype has in Python: "bfloat16"; for kOther "another dtype".
std::string dtype_name(int32_t number);
std::string dtype_name(Dtype dtype);

}  // namespace multikv
