// A call of an op: its backend, the device of its tensors, and how it fails.
#pragma once

#include <string>
#include <string_view>

#include "frontend/check/arguments.h"

namespace multikv {

// What the checks need to know of a backend.
struct BackendTraits {
  // Returns the device type of the backend's tensors, as torch's number.
  int32_t (*device_type)();
  // Returns the element that `fp8` and `fp8_e4m3` mean for a uint8 cache on this device: the one that the platform's
  // attention kernels read.
  Element (*e4m3_of_bytes)(int32_t device_index);
  // Copies indices to the host so that the host can check them; nullptr if the host can read the device's memory.
  void (*read_to_host)(void* host, const void* device, int64_t num_bytes, int32_t device_index);
  // Returns whether calls on this device check the values of indices before anything is written.
  bool (*checks_indices)(int32_t device_index);
  // Returns the address at which the device reads host memory, or nullptr if the device cannot read it because it is
  // not pinned. The function pointer is nullptr if the device can read all host memory.
  const void* (*device_view)(const void* host, int32_t device_index);
};

class Call {
 public:
  Call(std::string_view op, const BackendTraits& backend, const Arguments& arguments)
      : op_(op), backend_(backend), arguments_(arguments) {}

  std::string_view op() const { return op_; }
  const BackendTraits& backend() const { return backend_; }
  int32_t device_index() const { return device_.index; }

  // Whether the call is valid, but has nothing to write. Its params are then not handed to the backend, and need not be
  // complete.
  bool nothing_to_do() const { return nothing_to_do_; }
  void set_nothing_to_do() { nothing_to_do_ = true; }

  // Throws an exception that Python sees as a RuntimeError: "op: argument: expected X, got Y".
  [[noreturn]] void fail(std::string_view argument, std::string_view expected, std::string_view got) const;
  // Throws an exception that Python sees as an IndexError: "op: argument[subscript]: expected X, got Y".
  [[noreturn]] void fail_index(std::string_view argument, std::string_view subscript, std::string_view expected,
                               int64_t got) const;

  // A None has no properties, so it is rejected before anything else uses the tensor. check_device() and check_on_cpu()
  // reject it. Code that calls neither of them for a tensor rejects None itself.

  // Fails if the tensor is None, or is not on the device of the call. The first tensor checked determines the device.
  void check_device(std::string_view argument, const Tensor& tensor) {
    if (device_of_.empty() || tensor.is_none() || !(tensor.device() == device_)) set_or_fail_device(argument, tensor);
  }
  // Fails unless the tensor is on a device of the same type as the call's. If it is the first tensor that is checked,
  // its device becomes that of the call. The caller has rejected None.
  void check_peer_device(std::string_view argument, const Tensor& tensor);
  // Fails if the tensor is None, or is not on the CPU, whatever the device of the call.
  void check_on_cpu(std::string_view argument, const Tensor& tensor) const;

 private:
  void set_or_fail_device(std::string_view argument, const Tensor& tensor);
  void set_device(std::string_view argument, const Tensor& tensor);

  std::string_view op_;
  const BackendTraits& backend_;
  const Arguments& arguments_;
  std::string_view device_of_;  // the name of the argument that determined device_; empty before
  Device device_{};
  bool nothing_to_do_ = false;
};

}  // namespace multikv
