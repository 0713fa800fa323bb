#include "frontend/check/call.h"

#include <stdexcept>

namespace multikv {

void Call::fail(std::string_view argument, std::string_view expected, std::string_view got) const {
  throw std::runtime_error(join({op_, ": ", argument, ": expected ", expected, ", got ", got}));
}

void Call::fail_index(std::string_view argument, std::string_view subscript, std::string_view expected,
                      int64_t got) const {
  throw std::out_of_range(join({op_, ": ", argument, "[", subscript, "]: expected ", expected, ", got ", text(got)}));
}

void Call::set_device(std::string_view argument, const Tensor& tensor) {
  const int32_t type = backend_.device_type();
  if (tensor.device().type != type) {
    const std::string other = arguments_.tensor_on(type);
    const std::string_view type_name = type == aoti_torch_device_type_cpu() ? "CPU" : "CUDA";
    fail(argument, join({"a ", type_name, " tensor", other.empty() ? "" : " (", other, other.empty() ? "" : ")"}),
         device_text(tensor.device()));
  }
  device_of_ = argument;
  device_ = tensor.device();
}

void Call::set_or_fail_device(std::string_view argument, const Tensor& tensor) {
  if (tensor.is_none()) fail(argument, "a tensor", "None");
  if (device_of_.empty()) return set_device(argument, tensor);
  fail(argument, join({"device ", device_text(device_), " like ", device_of_}), device_text(tensor.device()));
}

void Call::check_peer_device(std::string_view argument, const Tensor& tensor) {
  if (device_of_.empty() || tensor.device().type != device_.type) check_device(argument, tensor);
}

void Call::check_on_cpu(std::string_view argument, const Tensor& tensor) const {
  if (tensor.is_none()) fail(argument, "a tensor", "None");
  if (tensor.device().type != aoti_torch_device_type_cpu())
    fail(argument, "a CPU tensor", device_text(tensor.device()));
}

}  // namespace multikv
