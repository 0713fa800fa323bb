// One call of an op: its backend, its device, and its errors.
#pragma once

#include <string>
#include <string_view>

#include "frontend/check/arguments.h"

namespace multikv {

// What the checks need to know of a backend.
struct BackendTraits {
  // The type of the devices that its tensors are on, as torch numbers the types.
  int32_t (*device_type)();
  // The element that `fp8` and `fp8_e4m3` mean for a uint8 cache on this device: the one that the platform's attention
  // kernels read.
  Element (*e4m3_of_bytes)(int32_t device_index);
  // Copies indices to the host so that the host can check them; nullptr if the host can read the device's memory.
  void (*read_to_host)(void* host, const void* device, int64_t num_bytes, int32_t device_index);
  // Whether the indices of this call are checked before anything is written.
  bool (*checks_indices)(int32_t device_index);
  // Returns the address at which the device reads pinned host memory, or nullptr if it cannot read the memory. The
  // function itself is nullptr if the device can read any host memory.
  const void* (*device_view)(const void* host, int32_t device_index);
};

class Call {
 public:
  Call(std::string_view op, const BackendTraits& backend, const Arguments& arguments)
      : op_(op), backend_(backend), arguments_(arguments) {}

  std::string_view op() const { return op_; }
  const BackendTraits& backend() const { return backend_; }
  int32_t device_index() const { return device_.index; }

  // The call is good, but it writes nothing: its params are not handed to the backend.
  bool nothing_to_do() const { return nothing_to_do_; }
  void set_nothing_to_do() { nothing_to_do_ = true; }

  // Throws what becomes a RuntimeError in Python: "op: argument: expected X, got Y".
  [[noreturn]] void fail(std::string_view argument, std::string_view expected, std::string_view got) const;
  // Throws what becomes an IndexError: "op: argument[position]: expected X, got Y".
  [[noreturn]] void fail_index(std::string_view argument, std::string_view position, std::string_view expected,
                               int64_t got) const;

  // The tensor is on the device of the call, which is that of the first tensor checked here. Every tensor of a call
  // gets this check, or one of the next two, before any other.
  void check_device(std::string_view argument, const Tensor& tensor);
  // The tensor is on a device of the same type as the call's; if it is the first, its device becomes the call's.
  void check_peer_device(std::string_view argument, const Tensor& tensor);
  // The tensor is on the CPU, whatever the device of the call.
  void check_on_cpu(std::string_view argument, const Tensor& tensor) const;

 private:
  void set_device(std::string_view argument, const Tensor& tensor);

  std::string_view op_;
  const BackendTraits& backend_;
  const Arguments& arguments_;
  std::string_view device_of_;  // the argument whose device is the call's
  Device device_{};
  bool nothing_to_do_ = false;
};

}  // namespace multikv
