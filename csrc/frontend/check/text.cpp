#include "frontend/check/text.h"

namespace multikv {

namespace {

std::string list_text(int64_t count, auto number) {
  std::string list = "[";
  for (int64_t i = 0; i < count; ++i) list += (i > 0 ? ", " : "") + text(number(i));
  return list + "]";
}

}  // namespace

std::string join(std::initializer_list<std::string_view> parts) {
  std::string joined;
  for (const std::string_view part : parts) joined += part;
  return joined;
}

std::string text(int64_t number) { return std::to_string(number); }

std::string count_text(int64_t count, std::string_view noun) {
  return join({text(count), " ", noun, count == 1 ? "" : "s"});
}

std::string range_text(std::string_view noun, int64_t count, std::string_view which) {
  if (count == 0) return join({"no ", noun, " (there are 0", which, ")"});
  return join({"a ", noun, " from 0 to ", text(count - 1)});
}

std::string device_type_text(int32_t device_type) {
  if (device_type == aoti_torch_device_type_cpu()) return "cpu";
  if (device_type == aoti_torch_device_type_cuda()) return "cuda";
  if (device_type == aoti_torch_device_type_meta()) return "meta";
  return "device type " + text(device_type);
}

std::string device_text(Device device) {
  const std::string type = device_type_text(device.type);
  return device.index < 0 ? type : join({type, ":", text(device.index)});
}

std::string dtype_text(const Tensor& tensor) { return dtype_name(tensor.dtype_number()); }

std::string shape_text(const Tensor& tensor) {
  return "shape " + list_text(tensor.dim(), [&](int64_t i) { return tensor.size(i); });
}

std::string layout_text(const Tensor& tensor) {
  const std::string strides = list_text(tensor.dim(), [&](int64_t i) { return tensor.stride(i); });
  return join({shape_text(tensor), " and strides ", strides});
}

}  // namespace multikv
