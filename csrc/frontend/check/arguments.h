// The arguments of a call, for error messages that name one of them.
#pragma once

#include <concepts>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "frontend/check/text.h"
#include "frontend/torch/list.h"
#include "frontend/torch/schema_check.h"

namespace multikv {

class Arguments {
 public:
  // Returns a text that names the first tensor, in the order of the schema, that is on a device of this type:
  // "key_cache is on cuda:0". The text is empty if there is no such tensor.
  virtual std::string tensor_on(int32_t device_type) const = 0;

 protected:
  ~Arguments() = default;
};

// The same text for one argument, which is a tensor, an optional tensor or a list of tensors.
std::string tensor_on(int32_t device_type, std::string_view name, const Tensor& argument);
template <std::derived_from<Tensor> Item>
std::string tensor_on(int32_t device_type, std::string_view name, const std::optional<Item>& argument) {
  return argument.has_value() ? tensor_on(device_type, name, *argument) : "";
}
template <std::derived_from<Tensor> Item>
std::string tensor_on(int32_t device_type, std::string_view name, const ListOf<Item>& argument) {
  std::string found;
  for (int64_t i = 0; found.empty() && i < argument.size(); ++i) {
    found = tensor_on(device_type, join({name, "[", text(i), "]"}), argument[i]);
  }
  return found;
}

// References to the arguments of an op with this schema.
template <const auto& schema, class... Args>
class ArgumentsOf : public Arguments {
 public:
  explicit ArgumentsOf(const Args&... args) : args_(args...) {}

  std::string tensor_on(int32_t device_type) const override {
    SchemaArguments declarations(schema);
    std::string found;
    const auto look_at = [&]<class Arg>(const Arg& arg) {
      const std::string_view name = argument_name(declarations.next());
      if constexpr (requires { multikv::tensor_on(device_type, name, arg); }) {
        if (found.empty()) found = multikv::tensor_on(device_type, name, arg);
      }
    };
    std::apply([&](const Args&... args) { (look_at(args), ...); }, args_);
    return found;
  }

 private:
  std::tuple<const Args&...> args_;
};

}  // namespace multikv
