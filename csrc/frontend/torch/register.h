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

// Registers the kernel under the op's name.
template <class Backend, const auto& schema, auto make_params>
void implement(Library& m) {
  static constexpr auto name = [] {
    std::array<char, op_name(schema).size() + 1> text{};
    for (size_t i = 0; i + 1 < text.size(); ++i) text[i] = schema[i];
    return text;
  }();
  constexpr auto* call = &Kernel<Backend, schema, make_params>::call;
  m.impl(name.data(), TORCH_BOX(call));
}

}  // namespace multikv
