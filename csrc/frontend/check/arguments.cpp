#include "frontend/check/arguments.h"

namespace multikv {

std::string tensor_on(int32_t device_type, std::string_view name, const Tensor& argument) {
  if (argument.is_none() || argument.device().type != device_type) return {};
  return join({name, " is on ", device_text(argument.device())});
}

}  // namespace multikv
