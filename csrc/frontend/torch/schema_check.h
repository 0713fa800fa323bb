// Compares a schema string with the C++ parameters that receive its arguments, at compile time.
//
// TORCH_BOX compares only the number of arguments. Without this check, an int64_t parameter would silently read a
// Tensor argument as an integer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "frontend/torch/format_name.h"
#include "frontend/torch/list.h"
#include "frontend/torch/tensor.h"

namespace multikv {

// The name of each C++ parameter type in a schema. `!` stands for the alias set of a written tensor; the sets of a
// schema are a!, b!, ... in order.
template <class T>
inline constexpr std::string_view schema_type = "";
template <>
inline constexpr std::string_view schema_type<const Tensor&> = "Tensor";
template <>
inline constexpr std::string_view schema_type<const MutableTensor&> = "Tensor(!)";
template <>
inline constexpr std::string_view schema_type<const OptionalTensor&> = "Tensor?";
template <>
inline constexpr std::string_view schema_type<const TensorList&> = "Tensor[]";
template <>
inline constexpr std::string_view schema_type<const MutableTensorList&> = "Tensor(!)[]";
template <>
inline constexpr std::string_view schema_type<const FormatName&> = "str";
template <>
inline constexpr std::string_view schema_type<int64_t> = "int";
template <>
inline constexpr std::string_view schema_type<double> = "float";
template <>
inline constexpr std::string_view schema_type<bool> = "bool";

constexpr std::string_view op_name(std::string_view schema) { return schema.substr(0, schema.find('(')); }

// The arguments of a schema, one after the other: "Tensor(a!) dst", "int n=0". A default value holds no ", ".
class SchemaArguments {
 public:
  static constexpr std::string_view kReturnsNothing = ") -> ()";

  // Of a schema that returns nothing.
  constexpr explicit SchemaArguments(std::string_view schema) {
    const size_t open = schema.find('(');
    rest_ = schema.substr(open + 1, schema.size() - kReturnsNothing.size() - open - 1);
  }
  constexpr bool is_at_end() const { return rest_.empty(); }
  constexpr std::string_view next() {
    const std::string_view argument = rest_.substr(0, rest_.find(", "));
    rest_.remove_prefix(argument.size() == rest_.size() ? rest_.size() : argument.size() + 2);
    return argument;
  }

 private:
  std::string_view rest_;
};

// "Tensor(a!) dst" and "int n=0" -> "dst" and "n".
constexpr std::string_view argument_name(std::string_view argument) {
  const std::string_view name = argument.substr(argument.find(' ') + 1);
  return name.substr(0, name.find('='));
}

// Whether an argument of a schema has this type. `alias` is the letter of the next written tensor.
constexpr bool is_of_type(std::string_view argument, std::string_view type, char& alias) {
  const std::string_view written = argument.substr(0, argument.find(' '));
  constexpr std::string_view kTensor = "Tensor(!)";
  if (!type.starts_with(kTensor)) return !type.empty() && written == type;
  const char expected[] = {'T', 'e', 'n', 's', 'o', 'r', '(', alias++, '!', ')'};
  return written.starts_with(std::string_view(expected, sizeof expected)) &&
         written.substr(sizeof expected) == type.substr(kTensor.size());
}

// Whether the arguments of a schema have exactly these types, and the op returns nothing.
template <class... Args>
constexpr bool schema_matches(std::string_view schema) {
  if (schema.find('(') == schema.npos || !schema.ends_with(SchemaArguments::kReturnsNothing)) return false;
  SchemaArguments arguments(schema);
  char alias = 'a';
  return (is_of_type(arguments.next(), schema_type<Args>, alias) && ...) && arguments.is_at_end();
}

}  // namespace multikv
