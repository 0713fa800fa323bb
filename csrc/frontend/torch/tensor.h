// The tensor arguments of ops, which torch's stable ABI passes as handles.
#pragma once

#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "frontend/torch/autograd.h"
#include "frontend/torch/dtype.h"

namespace multikv {

struct Device {
  int32_t type;  // torch's number of the device type
  int32_t index;
  bool operator==(const Device&) const = default;
};

// A tensor argument. It owns its handle, and reads the metadata once. Sizes and strides live as long as it.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) noexcept;
  Tensor(Tensor&& other) noexcept { *this = std::move(other); }
  Tensor& operator=(Tensor&& other) noexcept;
  ~Tensor();

  // Whether the argument is Python's None. No other member may be used then; the front end rejects None first (see
  // Call in frontend/check/call.h).
  bool is_none() const { return dim_ < 0; }
  int64_t dim() const { return dim_; }
  int64_t size(int64_t i) const { return sizes_[i]; }
  int64_t stride(int64_t i) const { return strides_[i]; }
  int64_t numel() const;
  bool is_contiguous() const;
  Dtype dtype() const { return dtype_; }
  int32_t dtype_number() const { return dtype_number_; }
  int64_t element_bytes() const { return element_bytes_; }
  Device device() const { return device_; }
  // Returns the number of bytes from the first element to the end of the last one, and the number of bytes that the
  // storage has from the first element on. Storages can shrink under a tensor.
  int64_t needed_bytes() const;
  int64_t storage_bytes() const;
  // Returns the address for reading. A copy-on-write tensor stays shared.
  const void* data() const;

 protected:
  AtenTensorHandle handle_ = nullptr;

 private:
  int64_t dim_ = -1;
  const int64_t* sizes_ = nullptr;
  const int64_t* strides_ = nullptr;
  Device device_{};
  int32_t dtype_number_ = 0;
  int32_t element_bytes_ = 0;
  Dtype dtype_ = Dtype::kOther;
};

// A tensor that the op writes: `Tensor(a!)` in the schema.
class MutableTensor : public Tensor {
 public:
  using Tensor::Tensor;
  // See frontend/torch/autograd.h.
  bool is_recorded() const { return multikv::is_recorded(handle_); }
  void bump_version() const { multikv::bump_version(handle_); }
  // Returns the address for writing. Torch copies a copy-on-write tensor first.
  void* mutable_data() const;
};

// `Tensor?` and `Tensor(a!)?` in the schema.
using OptionalTensor = std::optional<Tensor>;
using OptionalMutableTensor = std::optional<MutableTensor>;

}  // namespace multikv
