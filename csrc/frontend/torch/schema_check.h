// Compares a schema string with the C++ parameters that receive its arguments, at compile time.
//
// Without this check, an int64_t parameter would silently read a Tensor argument as an integer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "frontend/torch/format_name.h"
#include "frontend/torch/list.h"
#include "frontend/torch/tensor.h"
#include "frontend/torch/word.h"

namespace multikv {

// The schema type of each C++ parameter type. `!` stands for the alias set of a written tensor. The alias sets of a
// schema must be a!, b!, and so on, in this order.
template <class T>
inline constexpr std::string_view schema_type = "";
template <>
inline constexpr std::string_view schema_type<const Tensor&> = "Tensor";
template <>
inline constexpr std::string_view schema_type<const MutableTensor&> = "Tensor(!)";
template <>
inline constexpr std::string_view schema_type<const OptionalTensor&> = "Tensor?";
template <>
inline constexpr std::string_view schema_type<const OptionalMutableTensor&> = "Tensor(!)?";
template <>
inline constexpr std::string_view schema_type<const TensorList&> = "Tensor[]";
template <>
inline constexpr std::string_view schema_type<const MutableTensorList&> = "Tensor(!)[]";
template <>
inline constexpr std::string_view schema_type<const FormatName&> = "str";
template <>
inline constexpr std::string_view schema_type<const Word&> = "str";
template <>
inline constexpr std::string_view schema_type<const IntList&> = "int[]";
template <>
inline constexpr std::string_view schema_type<const OptionalIntList&> = "int[]?";
template <>
inline constexpr std::string_view schema_type<int64_t> = "int";
template <>
inline constexpr std::string_view schema_type<std::optional<int64_t>> = "int?";
template <>
inline constexpr std::string_view schema_type<double> = "float";
template <>
inline constexpr std::string_view schema_type<bool> = "bool";

constexpr std::string_view op_name(std::string_view schema) { return schema.substr(0, schema.find('(')); }

// Iterates over the arguments of a schema: "Tensor(a!) dst", "int n=0". A default value must not contain ", ".
class SchemaArguments {
 public:
  static constexpr std::string_view kReturnsNothing = ") -> ()";

  // The schema must return nothing.
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

// Returns "dst" for "Tensor(a!) dst", and "n" for "int n=0".
constexpr std::string_view argument_name(std::string_view argument) {
  const std::string_view name = argument.substr(argument.find(' ') + 1);
  return name.substr(0, name.find('='));
}

// Returns whether an argument of a schema has this type. `alias` is the alias set of the next written tensor; a written
// tensor advances it.
constexpr bool is_of_type(std::string_view argument, std::string_view type, char& alias) {
  const std::string_view declared = argument.substr(0, argument.find(' '));
  constexpr std::string_view kTensor = "Tensor(!)";
  if (!type.starts_with(kTensor)) return !type.empty() && declared == type;
  const char expected[] = {'T', 'e', 'n', 's', 'o', 'r', '(', alias++, '!', ')'};
  return declared.starts_with(std::string_view(expected, sizeof expected)) &&
         declared.substr(sizeof expected) == type.substr(kTensor.size());
}

// Returns whether the arguments of a schema have exactly these types, and the schema returns nothing.
template <class... Args>
constexpr bool schema_matches(std::string_view schema) {
  if (schema.find('(') == schema.npos || !schema.ends_with(SchemaArguments::kReturnsNothing)) return false;
  SchemaArguments arguments(schema);
  char alias = 'a';
  return (is_of_type(arguments.next(), schema_type<Args>, alias) && ...) && arguments.is_at_end();
}

}  // namespace multikv
