#include "frontend/torch/takeover.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <utility>

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

// Removes "=value" after the names of arguments.
std::string without_defaults(std::string_view arguments) {
  std::string text;
  char quote = 0;  // the quotation mark of the string literal that is being read
  bool is_default = false;
  for (const char c : arguments) {
    if (quote != 0) {
      if (c == quote) quote = 0;
      continue;
    }
    if (c == '=') is_default = true;
    if (c == ',' || c == ')') is_default = false;
    if (c == '\'' || c == '"') quote = c;
    if (!is_default) text += c;
  }
  return text;
}

// Removes the alias sets, which are the parentheses inside the list of arguments: Tensor(a!) becomes Tensor.
std::string without_alias_sets(std::string_view arguments) {
  std::string text;
  int depth = 0;  // of parentheses
  for (const char c : arguments) {
    if (c == ')') --depth;
    const bool is_alias_set = depth > 1 || (depth == 1 && (c == '(' || c == ')'));
    if (!is_alias_set) text += c;
    if (c == '(') ++depth;
  }
  return text;
}

}  // namespace

std::string signature(std::string_view schema) {
  return without_alias_sets(without_defaults(schema.substr(std::min(schema.find('('), schema.size()))));
}

namespace {

const BoxedKernel* find(const std::vector<BoxedKernel>& kernels, std::string_view name) {
  const auto found =
      std::find_if(kernels.begin(), kernels.end(), [&](const auto& kernel) { return kernel.name == name; });
  return found == kernels.end() ? nullptr : &*found;
}

// A registration lasts as long as its Library.
std::unique_ptr<Library> new_library(Library::Kind kind, const char* ns, const char* dispatch_key) {
  return std::make_unique<Library>(kind, ns, dispatch_key, __FILE__, __LINE__);
}

// The registrations of kernels. The vector is never destroyed: when the process ends, PyTorch's dispatcher may be
// destroyed first.
std::vector<std::unique_ptr<Library>>& kernel_libraries() {
  static auto& libraries = *new std::vector<std::unique_ptr<Library>>;
  return libraries;
}

// Defines an op for the rest of the process, because Python keeps references to ops that it has called.
void define(const char* ns, const char* schema) {
  new_library(Library::Kind::FRAGMENT, ns, nullptr).release()->def(schema);
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
    if (schema == nullptr) define(ns, kernel->schema);
    std::unique_ptr<Library> library = new_library(Library::Kind::IMPL, ns, dispatch_key);
    library->impl(kernel->name, kernel->call);
    kernel_libraries().push_back(std::move(library));
  } catch (const std::exception& caught) {
    reason = caught.what();
    return reason.c_str();
  }
  return nullptr;
}

void give_back() { kernel_libraries().clear(); }

}  // namespace multikv
