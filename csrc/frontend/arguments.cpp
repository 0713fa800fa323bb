#include "arguments.h"

#include <array>
#include <string_view>

namespace multikv {

namespace {

// The shim numbers dtypes by functions, so that torch may renumber them; we ask once.
struct DtypeTable {
  std::array<Dtype, 128> entries{};
  DtypeTable() {
    set(aoti_torch_dtype_float32(), Dtype::kFloat32);
    set(aoti_torch_dtype_float16(), Dtype::kFloat16);
    set(aoti_torch_dtype_bfloat16(), Dtype::kBFloat16);
    set(aoti_torch_dtype_int32(), Dtype::kInt32);
    set(aoti_torch_dtype_int64(), Dtype::kInt64);
    set(aoti_torch_dtype_uint8(), Dtype::kUInt8);
    set(aoti_torch_dtype_float8_e4m3fn(), Dtype::kFloat8E4M3FN);
    set(aoti_torch_dtype_float8_e5m2(), Dtype::kFloat8E5M2);
    set(aoti_torch_dtype_float8_e4m3fnuz(), Dtype::kFloat8E4M3FNUZ);
    set(aoti_torch_dtype_float8_e5m2fnuz(), Dtype::kFloat8E5M2FNUZ);
  }
  void set(int32_t raw, Dtype dtype) {
    if (raw >= 0 && raw < static_cast<int32_t>(entries.size())) entries[raw] = dtype;
  }
  Dtype get(int32_t raw) const {
    return raw >= 0 && raw < static_cast<int32_t>(entries.size()) ? entries[raw] : Dtype::kOther;
  }
};

const DtypeTable dtypes;

}  // namespace

Tensor::Tensor(AtenTensorHandle handle) noexcept : handle_(handle) {
  bool is_defined = false;
  aoti_torch_is_defined(handle, &is_defined);
  if (!is_defined) return;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  aoti_torch_get_dim(handle, &dim_);
  aoti_torch_get_sizes(handle, &sizes);
  aoti_torch_get_strides(handle, &strides);
  aoti_torch_get_dtype(handle, &raw_dtype_);
  aoti_torch_get_device_type(handle, &device_.type);
  aoti_torch_get_device_index(handle, &device_.index);
  sizes_ = sizes;
  strides_ = strides;
  dtype_ = dtypes.get(raw_dtype_);
  element_bytes_ = static_cast<int32_t>(aoti_torch_dtype_element_size(raw_dtype_));
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(handle_, other.handle_);
  dim_ = other.dim_;
  sizes_ = other.sizes_;
  strides_ = other.strides_;
  device_ = other.device_;
  raw_dtype_ = other.raw_dtype_;
  element_bytes_ = other.element_bytes_;
  dtype_ = other.dtype_;
  return *this;
}

Tensor::~Tensor() {
  if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

int64_t Tensor::numel() const {
  int64_t product = 1;
  for (int64_t i = 0; i < dim_; ++i) product *= sizes_[i];
  return product;
}

// A const pointer leaves a copy-on-write tensor shared; a mutable one is the copy's moment.
const void* Tensor::data() const {
  const void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_const_data_ptr(handle_, &data));
  return data;
}

void* MutableTensor::mutable_data() const {
  void* data = nullptr;
  TORCH_ERROR_CODE_CHECK(torch_get_mutable_data_ptr(handle_, &data));
  return data;
}

namespace {

struct NamedKind {
  std::string_view name;
  FormatName::Kind kind;
};

using Kind = FormatName::Kind;
constexpr NamedKind kNames[] = {
    {"auto", Kind::kAuto},
    {"float16", Kind::kFloat16},
    {"bfloat16", Kind::kBFloat16},
    {"float32", Kind::kFloat32},
    {"fp8", Kind::kE4M3},
    {"fp8_e4m3", Kind::kE4M3},
    {"fp8_e5m2", Kind::kE5M2},
    {"fp8_e4m3fn", Kind::kE4M3FN},
    {"fp8_e4m3fnuz", Kind::kE4M3FNUZ},
    {"fp8_e5m2fnuz", Kind::kE5M2FNUZ},
};

}  // namespace

FormatName FormatName::parse(const char* data, size_t length) {
  const std::string_view text(data, length);
  for (const auto& [name, kind] : kNames) {
    if (text == name) return {kind, {}};
  }
  return {Kind::kUnknown, std::string(text)};
}

const char* FormatName::valid_names() {
  static const std::string joined = [] {
    std::string all;
    for (const auto& entry : kNames) (all += all.empty() ? "" : ", ") += entry.name;
    return all;
  }();
  return joined.c_str();
}

}  // namespace multikv
