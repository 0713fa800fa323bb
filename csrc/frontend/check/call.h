// One call of an op, as the checks see it: who asks, for which kind of device, and how to say what is wrong.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "frontend/torch/arguments.h"
#include "params/params.h"

namespace multikv {

// What the checks need to know of a backend.
struct BackendTraits {
  // The device its tensors are on, as the shim numbers types.
  int32_t (*device_type)();
  // The e4m3 that `fp8` and `fp8_e4m3` mean for a uint8 cache on this device: what its attention kernels read.
  CacheFormat (*e4m3_of_bytes)(int32_t device_index);
  // Copies indices to the host when they are to be checked there; nullptr where the host can read them as they are.
  void (*read_to_host)(void* host, const void* device, int64_t num_bytes, int32_t device_index);
  // Whether the indices of this call are to be checked before anything is written.
  bool (*checks_indices)(int32_t device_index);
  // Where the device finds pinned host memory, nullptr if it cannot read it; no function where any memory will do.
  const void* (*device_view)(const void* host, int32_t device_index);
};

class Call {
 public:
  Call(std::string_view op, const BackendTraits& backend) : op_(op), backend_(backend) {}

  std::string_view op() const { return op_; }
  const BackendTraits& backend() const { return backend_; }
  int32_t device_index() const { return device_.index; }

  bool nothing_to_do() const { return nothing_to_do_; }
  void set_nothing_to_do() { nothing_to_do_ = true; }

  // RuntimeError and IndexError: "op: argument: expected X, got Y".
  [[noreturn]] void fail(std::string_view argument, std::string_view expected, std::string_view got) const;
  [[noreturn]] void fail_index(std::string_view argument, std::string_view position, std::string_view expected,
                               int64_t got) const;

  // Every tensor of a call is one (None is not), and on the device of the first that is checked.
  void check_device(std::string_view argument, const Tensor& tensor);
  // Or on another device of that type.
  void check_peer_device(std::string_view argument, const Tensor& tensor);
  // But those that must be on the CPU.
  void check_on_cpu(std::string_view argument, const Tensor& tensor) const;
  void check_dim(std::string_view argument, const Tensor& tensor, int64_t dim) const;
  void check_device_and_dim(std::string_view argument, const Tensor& tensor, int64_t dim);
  void check_size(std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                  std::string_view of) const;
  // At least; in dimension 0 they are called rows.
  void check_min_size(std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                      std::string_view of) const;
  void check_dtype(std::string_view argument, const Tensor& tensor, Dtype dtype, std::string_view of) const;
  // Any dtype, but that of another argument.
  void check_same_dtype(std::string_view argument, const Tensor& tensor, const Tensor& other,
                        std::string_view of) const;
  // A number that is no tensor.
  void check_at_least(std::string_view argument, int64_t value, int64_t minimum) const;
  // The innermost dimension must be dense.
  void check_inner_stride(std::string_view argument, const Tensor& tensor) const;
  // A tensor that is written must not hold one element at two indices (expand()).
  void check_not_expanded(std::string_view argument, const Tensor& tensor) const;
  // Both: whatever is written.
  void check_writable(std::string_view argument, const Tensor& tensor) const;

  // Addresses of the elements. A tensor from elsewhere may start between two of them, which GPUs cannot read.
  const void* data(std::string_view argument, const Tensor& tensor) const;
  void* mutable_data(std::string_view argument, const MutableTensor& tensor) const;
  // Of a tensor on the CPU that the op's device reads where it is: on a GPU it must be pinned.
  const void* host_data(std::string_view argument, const Tensor& tensor) const;

  // An input of float32, float16 or bfloat16.
  Float float_dtype(std::string_view argument, const Tensor& tensor) const;
  void check_name(const FormatName& name, FormatNames valid) const;
  // How the cache stores elements that come as `dtype`, that of `of`; checks the cache's own dtype.
  CacheFormat cache_format(const FormatName& name, std::string_view argument, const Tensor& cache, Float dtype,
                           std::string_view of = "the input") const;
  // The parts of which that is made. A float name fits the dtype. The format that an fp8 name gives a uint8 cache, and
  // one of its own dtype. The e4m3 of a cache whose format has no other name.
  void check_float_name(const FormatName& name, Float dtype, std::string_view of) const;
  CacheFormat fp8_format_of_bytes(const FormatName& name) const;
  CacheFormat fp8_format(const FormatName& name, std::string_view argument, const Tensor& cache) const;
  CacheFormat e4m3_format(std::string_view argument, const Tensor& cache) const;
  // Index tensors, int32 or int64, of that rank.
  Indices indices(std::string_view argument, const Tensor& tensor, int64_t dim);
  // The size of the cache's blocks, which is its size in that dimension.
  Divisor block_size(std::string_view argument, const Tensor& cache, int64_t dim) const;
  // An fp8 scale: float32, one element; or one per head, then with the stride between heads.
  const float* scale(std::string_view argument, const Tensor& scale);
  int64_t scale_stride(std::string_view argument, const Tensor& scale, int64_t num_heads);

 private:
  std::string_view op_;
  const BackendTraits& backend_;
  std::string_view device_of_;
  Device device_{};
  bool nothing_to_do_ = false;
};

// Of sizes: a tensor's may be anything where another is 0.
constexpr int64_t wrapping_sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
constexpr int64_t wrapping_product(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}

// Parts of messages, for checks of their own.
std::string device_text(Device device);
const char* name_of(Dtype dtype);
std::string dtype_text(const Tensor& tensor);
std::string shape_text(const Tensor& tensor);   // "[2, 3]"
std::string layout_text(const Tensor& tensor);  // "shape [2, 3] and strides [3, 1]"
std::string join(std::initializer_list<std::string_view> parts);

}  // namespace multikv
