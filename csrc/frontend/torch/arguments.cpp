#include "frontend/torch/arguments.h"

#include <array>

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

bool Tensor::is_contiguous() const {
  uint64_t dense = 1;  // may wrap where a size further out is 0
  bool is_dense = true;
  for (int64_t i = dim_ - 1; i >= 0; --i) {
    if (sizes_[i] == 0) return true;
    if (sizes_[i] > 1) is_dense &= static_cast<uint64_t>(strides_[i]) == dense;
    dense *= sizes_[i];
  }
  return is_dense;
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

using Kind = FormatName::Kind;

struct NamedKind {
  std::string_view name;
  Kind kind;
  uint8_t lists;
};

constexpr uint8_t lists(auto... names) { return (static_cast<uint8_t>(names) | ... | 0); }
constexpr auto kCache = FormatNames::kCache, kMla = FormatNames::kMla, kFp8 = FormatNames::kFp8;
constexpr auto kIndexer = FormatNames::kIndexer;

constexpr NamedKind kNames[] = {
    {"auto", Kind::kAuto, lists(kCache, kMla, kIndexer)},
    {"float16", Kind::kFloat16, lists(kCache, kMla)},
    {"bfloat16", Kind::kBFloat16, lists(kCache, kMla)},
    {"float32", Kind::kFloat32, lists(kCache, kMla, kIndexer)},
    {"fp32", Kind::kFloat32, lists(kIndexer)},
    {"fp8", Kind::kE4M3, lists(kCache, kMla, kFp8, kIndexer)},
    {"fp8_e4m3", Kind::kE4M3, lists(kCache, kMla, kFp8, kIndexer)},
    {"fp8_e5m2", Kind::kE5M2, lists(kCache, kMla, kFp8)},
    {"fp8_e4m3fn", Kind::kE4M3FN, lists(kCache, kMla, kFp8, kIndexer)},
    {"fp8_e4m3fnuz", Kind::kE4M3FNUZ, lists(kCache, kMla, kFp8, kIndexer)},
    {"fp8_e5m2fnuz", Kind::kE5M2FNUZ, lists(kCache, kMla, kFp8)},
    {"fp8_ds_mla", Kind::kDsMla, lists(kMla)},
    {"ue8m0", Kind::kPowerOfTwo, lists(kIndexer)},
    {"mxfp8", Kind::kExponentBytes, lists(kIndexer)},
};

}  // namespace

FormatName FormatName::parse(const char* data, size_t length) {
  const std::string_view text(data, length);
  for (const auto& [name, kind, lists] : kNames) {
    if (text == name) return {kind, lists, name, {}};
  }
  return {Kind::kUnknown, 0, {}, std::string(text)};
}

std::string FormatName::list(FormatNames names) {
  std::string joined;
  for (const auto& entry : kNames) {
    if (entry.lists & static_cast<uint8_t>(names)) (joined += joined.empty() ? "" : ", ") += entry.name;
  }
  return joined;
}

}  // namespace multikv
