#include "frontend/torch/takeover.h"

#include <algorithm>
#include <exception>

namespace multikv {

std::string op_names(const std::vector<BoxedKernel>& kernels) {
  std::string names;
  for (const BoxedKernel& kernel : kernels) {
    if (!names.empty()) names += ',';
    names += kernel.name;
  }
  return names;
}

namespace {

// Returns the index of the comma or parenthesis that ends a default value. String literals may contain both.
size_t end_of_default(std::string_view schema, size_t i) {
  char quote = 0;  // the quotation mark of the literal that is being read
  for (; i < schema.size(); ++i) {
    const char c = schema[i];
    if (quote != 0) {
      if (c == quote) quote = 0;
    } else if (c == '\'' || c == '"') {
      quote = c;
    } else if (c == ',' || c == ')') {
      break;
    }
  }
  return i;
}

}  // namespace

std::string signature(std::string_view schema) {
  std::string text;
  int depth = 0;  // of parentheses: 1 in the list of arguments, 2 in an alias set
  for (size_t i = std::min(schema.find('('), schema.size()); i < schema.size(); ++i) {
    if (depth == 1 && schema[i] == '=') i = end_of_default(schema, i);
    if (i == schema.size()) break;
    const char c = schema[i];
    if (c == ')') --depth;
    if (depth == 0 || (depth == 1 && c != '(' && c != ')')) text += c;
    if (c == '(') ++depth;
  }
  return text;
}

namespace {

const BoxedKernel* find(const std::vector<BoxedKernel>& kernels, std::string_view name) {
  const auto found =
      std::find_if(kernels.begin(), kernels.end(), [&](const auto& kernel) { return kernel.name == name; });
  return found == kernels.end() ? nullptr : &*found;
}

// Registrations last as long as their Library, so it is never deleted.
Library& endless_library(Library::Kind kind, const char* ns, const char* dispatch_key) {
  return *new Library(kind, ns, dispatch_key, __FILE__, __LINE__);
}

}  // namespace

const char* take_over(const std::vector<BoxedKernel>& kernels, const char* ns, const char* dispatch_key,
                      std::string_view name, const char* schema) {
  static thread_local std::string reason;
  const BoxedKernel* kernel = find(kernels, name);
  if (kernel == nullptr) return "multikv has no kernel of this name";
  if (schema != nullptr && signature(schema) != signature(kernel->schema)) {
    reason = "its schema is " + signature(schema) + ", expected " + signature(kernel->schema);
    return reason.c_str();
  }
  try {
    if (schema == nullptr) endless_library(Library::Kind::FRAGMENT, ns, nullptr).def(kernel->schema);
    endless_library(Library::Kind::IMPL, ns, dispatch_key).impl(kernel->name, kernel->call);
  } catch (const std::exception& caught) {
    reason = caught.what();
    return reason.c_str();
  }
  return nullptr;
}

}  // namespace multikv
