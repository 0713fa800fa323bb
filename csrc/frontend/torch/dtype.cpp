#include "frontend/torch/dtype.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <string_view>

namespace multikv {

namespace {

struct NamedDtype {
  int32_t (*number)();
  const char* name;
  Dtype dtype = Dtype::kOther;  // kOther: no op accepts the dtype
};

// The number of a dtype is the value of its ScalarType. Torch 2.11 has no aoti_torch_dtype_<name>() for the dtypes that
// use this function.
template <torch::headeronly::ScalarType type>
int32_t number_of() {
  return static_cast<int32_t>(type);
}

constexpr NamedDtype kDtypes[] = {
    {aoti_torch_dtype_float32, "float32", Dtype::kFloat32},
    {aoti_torch_dtype_float16, "float16", Dtype::kFloat16},
    {aoti_torch_dtype_bfloat16, "bfloat16", Dtype::kBFloat16},
    {aoti_torch_dtype_int32, "int32", Dtype::kInt32},
    {aoti_torch_dtype_int64, "int64", Dtype::kInt64},
    {aoti_torch_dtype_uint8, "uint8", Dtype::kUInt8},
    {aoti_torch_dtype_float8_e4m3fn, "float8_e4m3fn", Dtype::kFloat8E4M3FN},
    {aoti_torch_dtype_float8_e5m2, "float8_e5m2", Dtype::kFloat8E5M2},
    {aoti_torch_dtype_float8_e4m3fnuz, "float8_e4m3fnuz", Dtype::kFloat8E4M3FNUZ},
    {aoti_torch_dtype_float8_e5m2fnuz, "float8_e5m2fnuz", Dtype::kFloat8E5M2FNUZ},
    {aoti_torch_dtype_float64, "float64"},
    {aoti_torch_dtype_bool, "bool"},
    {aoti_torch_dtype_int8, "int8"},
    {aoti_torch_dtype_int16, "int16"},
    {aoti_torch_dtype_uint16, "uint16"},
    {aoti_torch_dtype_uint32, "uint32"},
    {aoti_torch_dtype_uint64, "uint64"},
    {aoti_torch_dtype_complex32, "complex32"},
    {aoti_torch_dtype_complex64, "complex64"},
    {aoti_torch_dtype_complex128, "complex128"},
    {number_of<torch::headeronly::ScalarType::Float8_e8m0fnu>, "float8_e8m0fnu"},
    {number_of<torch::headeronly::ScalarType::Float4_e2m1fn_x2>, "float4_e2m1fn_x2"},
};

// Returns the name of a dtype. kOther stands for many dtypes and has no name of its own.
constexpr const char* name_of(Dtype dtype) {
  if (dtype == Dtype::kOther) return "another dtype";
  for (const NamedDtype& row : kDtypes) {
    if (row.dtype == dtype) return row.name;
  }
  return "";
}
static_assert(std::string_view(name_of(Dtype::kOther)) == "another dtype");
static_assert(std::string_view(name_of(Dtype::kFloat8E5M2FNUZ)) == "float8_e5m2fnuz");

// A table from torch's numbers to Dtype. It is made once, when the library is loaded.
class DtypesByNumber {
 public:
  DtypesByNumber() {
    for (const NamedDtype& row : kDtypes) {
      const auto number = static_cast<size_t>(row.number());
      if (number < dtypes_.size()) dtypes_[number] = row.dtype;
    }
  }
  Dtype operator[](int32_t number) const {
    const auto index = static_cast<size_t>(number);
    return index < dtypes_.size() ? dtypes_[index] : Dtype::kOther;
  }

 private:
  std::array<Dtype, 128> dtypes_{};
};

const DtypesByNumber dtypes_by_number;

}  // namespace

Dtype dtype_of_number(int32_t number) { return dtypes_by_number[number]; }

std::string dtype_name(int32_t number) {
  for (const NamedDtype& row : kDtypes) {
    if (row.number() == number) return row.name;
  }
  return "torch dtype " + std::to_string(number);
}

std::string dtype_name(Dtype dtype) { return name_of(dtype); }

}  // namespace multikv
