// Compares, at compile time, a schema string with the C++ parameters that will receive its arguments.
//
// TORCH_BOX checks only how many there are: an int64_t that receives a Tensor would be read as an integer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "frontend/torch/arguments.h"

namespace multikv {

// What a schema calls each C++ parameter type. `!` stands for the alias set of a written tensor, in order: a!, b!, ...
template <class T>
inline constexpr std::string_view schema_type = "";
template <>
inline constexpr std::string_view schema_type<const Tensor&> = "Tensor";
template <>
inline constexpr std::string_view schema_type<const MutableTensor&> = "Tensor(!)";
template <>
inline constexpr std::string_view schema_type<const std::optional<Tensor>&> = "Tensor?";
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

// True where `text` (one argument of a schema, "Tensor(a!) dst") is of this type. `alias` counts the written tensors.
constexpr bool is_of_type(std::string_view text, std::string_view type, char& alias) {
  const std::string_view written = text.substr(0, text.find(' '));
  constexpr std::string_view kTensor = "Tensor(!)";
  if (!type.starts_with(kTensor)) return !type.empty() && written == type;
  const char expected[] = {'T', 'e', 'n', 's', 'o', 'r', '(', alias++, '!', ')'};
  return written.starts_with(std::string_view(expected, sizeof expected)) &&
         written.substr(sizeof expected) == type.substr(kTensor.size());
}

// True where the schema's arguments are exactly of these types and it returns nothing.
template <class... Args>
constexpr bool schema_matches(std::string_view schema) {
  constexpr std::string_view kReturnsNothing = ") -> ()";
  const size_t open = schema.find('(');
  if (open == schema.npos || !schema.ends_with(kReturnsNothing)) return false;
  std::string_view rest = schema.substr(open + 1, schema.size() - kReturnsNothing.size() - open - 1);
  char alias = 'a';
  const auto next_is = [&](std::string_view type) {
    const std::string_view argument = rest.substr(0, rest.find(", "));
    rest.remove_prefix(argument.size() == rest.size() ? rest.size() : argument.size() + 2);
    return is_of_type(argument, type, alias);
  };
  return (next_is(schema_type<Args>) && ...) && rest.empty();
}

}  // namespace multikv
