// Makes a kernel for the dispatcher from an op's schema, its make_<op>_params, and a backend.
//
// A backend is a type with two static functions. traits() returns the BackendTraits; run(params, call) runs the op.
#pragma once

#include <array>
#include <type_traits>

#include "frontend/check/arguments.h"
#include "frontend/check/autograd.h"
#include "frontend/check/call.h"
#include "frontend/torch/boxing.h"
#include "frontend/torch/schema_check.h"

namespace multikv {

using Library = torch::stable::detail::StableLibrary;

template <class Backend, const auto& schema, auto make_params>
struct Kernel;

template <class Backend, const auto& schema, class Params, class... Args, Params (*make_params)(Call&, Args...)>
struct Kernel<Backend, schema, make_params> {
  static_assert(schema_matches<Args...>(schema), "the schema and the parameters of its make_<op>_params differ");

  static void call(Args... args) {
    const ArgumentsOf<schema, std::remove_cvref_t<Args>...> arguments(args...);
    Call call{op_name(schema), Backend::traits(), arguments};
    check_not_recorded(call, arguments);
    const Params params = make_params(call, args...);
    bump_versions(arguments);
    if (!call.nothing_to_do()) Backend::run(params, call);
  }
};

// A kernel with the dispatcher's calling convention, and the name and schema of its op.
struct BoxedKernel {
  const char* name;
  const char* schema;
  void (*call)(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
};

template <class Backend, const auto& schema, auto make_params>
BoxedKernel boxed_kernel() {
  static constexpr auto name = [] {
    std::array<char, op_name(schema).size() + 1> text{};
    for (size_t i = 0; i + 1 < text.size(); ++i) text[i] = schema[i];
    return text;
  }();
  constexpr auto* call = &Kernel<Backend, schema, make_params>::call;
  return {name.data(), schema, TORCH_BOX(call)};
}

// Registers the kernel under the op's name.
template <class Backend, const auto& schema, auto make_params>
void implement(Library& m) {
  const BoxedKernel kernel = boxed_kernel<Backend, schema, make_params>();
  m.impl(kernel.name, kernel.call);
}

}  // namespace multikv
