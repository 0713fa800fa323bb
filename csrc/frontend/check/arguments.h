// The arguments of a call, for error messages that name one of them.
#pragma once

#include <concepts>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

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

// Calls visit(name, tensor) for each tensor of one argument; for an argument of another type it does nothing. `name`
// is a function that returns the name in error messages, because the name is composed only for a call that fails.
void for_each_tensor(auto visit, auto name, const Tensor& argument) { visit(name, argument); }
void for_each_tensor(auto visit, auto name, const MutableTensor& argument) { visit(name, argument); }
template <std::derived_from<Tensor> Item>
void for_each_tensor(auto visit, auto name, const std::optional<Item>& argument) {
  if (argument.has_value()) visit(name, *argument);
}
template <std::derived_from<Tensor> Item>
void for_each_tensor(auto visit, auto name, const ListOf<Item>& argument) {
  for (int64_t i = 0; i < argument.size(); ++i) {
    visit([&] { return join({name(), "[", text(i), "]"}); }, argument[i]);
  }
}
void for_each_tensor(auto, auto, const auto&) {}

// References to the arguments of an op with this schema.
template <const auto& schema, class... Args>
class ArgumentsOf : public Arguments {
 public:
  explicit ArgumentsOf(const Args&... args) : args_(args...) {}

  // Calls visit(name, tensor) for each tensor, in the order of the schema, that is not None. An item of a list has the
  // name "dst[0]".
  void for_each_tensor(auto visit) const {
    const auto unless_none = [&](const auto& name, const auto& tensor) {
      if (!tensor.is_none()) visit(name, tensor);
    };
    [&]<size_t... i>(std::index_sequence<i...>) {
      (multikv::for_each_tensor(unless_none, name_of<i>, std::get<i>(args_)), ...);
    }(std::index_sequence_for<Args...>());
  }

  // The same for the tensors that the op writes.
  void for_each_written(auto visit) const {
    for_each_tensor([&]<class T>(const auto& name, const T& tensor) {
      if constexpr (std::same_as<T, MutableTensor>) visit(name, tensor);
    });
  }

  std::string tensor_on(int32_t device_type) const override {
    std::string found;
    for_each_tensor([&](const auto& name, const Tensor& tensor) {
      if (found.empty() && tensor.device().type == device_type) {
        found = join({name(), " is on ", device_text(tensor.device())});
      }
    });
    return found;
  }

 private:
  template <size_t i>
  static std::string name_of() {
    SchemaArguments declarations(schema);
    for (size_t before = 0; before < i; ++before) declarations.next();
    return std::string(argument_name(declarations.next()));
  }

  std::tuple<const Args&...> args_;
};

}  // namespace multikv
