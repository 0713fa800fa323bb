#include "frontend/torch/tensor.h"

namespace multikv {

Tensor::Tensor(AtenTensorHandle handle) noexcept : handle_(handle) {
  bool is_defined = false;
  aoti_torch_is_defined(handle, &is_defined);
  if (!is_defined) return;
  int64_t* sizes = nullptr;
  int64_t* strides = nullptr;
  aoti_torch_get_dim(handle, &dim_);
  aoti_torch_get_sizes(handle, &sizes);
  aoti_torch_get_strides(handle, &strides);
  aoti_torch_get_dtype(handle, &dtype_number_);
  aoti_torch_get_device_type(handle, &device_.type);
  aoti_torch_get_device_index(handle, &device_.index);
  sizes_ = sizes;
  strides_ = strides;
  dtype_ = dtype_of_number(dtype_number_);
  element_bytes_ = static_cast<int32_t>(aoti_torch_dtype_element_size(dtype_number_));
}

Tensor& Tensor::operator=(Tensor&& other) noexcept {
  std::swap(handle_, other.handle_);
  dim_ = other.dim_;
  sizes_ = other.sizes_;
  strides_ = other.strides_;
  device_ = other.device_;
  dtype_number_ = other.dtype_number_;
  element_bytes_ = other.element_bytes_;
  dtype_ = other.dtype_;
  return *this;
}

Tensor::~Tensor() {
  if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
}

int64_t Tensor::numel() const {
  uint64_t product = 1;  // unsigned: the sizes of an empty tensor may overflow before a 0 comes
  for (int64_t i = 0; i < dim_; ++i) product *= static_cast<uint64_t>(sizes_[i]);
  return static_cast<int64_t>(product);
}

bool Tensor::is_contiguous() const {
  uint64_t expected_stride = 1;  // unsigned, because it may overflow if an outer dimension has size 0
  bool is_contiguous = true;
  for (int64_t i = dim_ - 1; i >= 0; --i) {
    if (sizes_[i] == 0) return true;
    if (sizes_[i] > 1) is_contiguous &= static_cast<uint64_t>(strides_[i]) == expected_stride;
    expected_stride *= sizes_[i];
  }
  return is_contiguous;
}

int64_t Tensor::needed_bytes() const {
  uint64_t elements = 1;  // unsigned: the sizes of an empty tensor may overflow before a 0 comes
  for (int64_t i = 0; i < dim_; ++i) {
    if (sizes_[i] == 0) return 0;
    elements += static_cast<uint64_t>(sizes_[i] - 1) * static_cast<uint64_t>(strides_[i]);
  }
  return static_cast<int64_t>(elements * element_bytes_);
}

int64_t Tensor::storage_bytes() const {
  int64_t num_bytes = 0;
  int64_t offset = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(handle_, &num_bytes));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(handle_, &offset));
  return num_bytes - offset * element_bytes_;
}

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

}  // namespace multikv
