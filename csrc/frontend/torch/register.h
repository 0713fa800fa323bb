// Makes a kernel for the dispatcher from an op's schema, its make_<op>_params, and the backend of the library.
//
// The front end is compiled once for all libraries, and names no backend. A kernel calls the function pointer
// run_on_backend<Params>, which a library sets when the library is loaded.
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

// The backend of this library: its traits, and for the params of each op the function that runs the op.
inline const BackendTraits* backend_traits = nullptr;
template <class Params>
inline void (*run_on_backend)(const Params& params, const Call& call) = nullptr;

// Makes Backend::run(params, call) run the op that has this make_<op>_params.
template <class Backend, class Params, class... Args>
void set_run(Params (*)(Call&, Args...)) {
  run_on_backend<Params> = [](const Params& params, const Call& call) { Backend::run(params, call); };
}

template <const auto& schema, auto make_params>
struct Kernel;

template <const auto& schema, class Params, class... Args, Params (*make_params)(Call&, Args...)>
struct Kernel<schema, make_params> {
  static_assert(schema_matches<Args...>(schema), "the schema and the parameters of its make_<op>_params differ");

  // Has the dispatcher's calling convention. The dispatcher has checked the number of arguments against the schema.
  // TORCH_BOX would move every argument into a tuple.
  static void call_boxed(StableIValue* stack, uint64_t, uint64_t) {
    [stack]<size_t... i>(std::index_sequence<i...>) {
      call(torch::stable::detail::to<std::remove_cvref_t<Args>>(stack[i])...);
    }(std::index_sequence_for<Args...>());
  }

 private:
  static void call(const std::remove_cvref_t<Args>&... args) {
    static constexpr std::string_view kName = op_name(schema);
    const ArgumentsOf<schema, std::remove_cvref_t<Args>...> arguments(args...);
    Call call{kName, *backend_traits, arguments};
    check_not_recorded(call, arguments);
    const Params params = make_params(call, args...);
    bump_versions(arguments);
    if (!call.nothing_to_do()) run_on_backend<Params>(params, call);
  }
};

// A kernel with the dispatcher's calling convention, and the name and schema of its op.
struct BoxedKernel {
  const char* name;
  const char* schema;
  void (*call)(StableIValue* stack, uint64_t num_arguments, uint64_t num_results);
};

template <const auto& schema, auto make_params>
BoxedKernel boxed_kernel() {
  static constexpr auto name = [] {
    std::array<char, op_name(schema).size() + 1> text{};
    for (size_t i = 0; i + 1 < text.size(); ++i) text[i] = schema[i];
    return text;
  }();
  return {name.data(), schema, &Kernel<schema, make_params>::call_boxed};
}

// Registers the kernel under the op's name.
template <const auto& schema, auto make_params>
void implement(Library& m) {
  const BoxedKernel kernel = boxed_kernel<schema, make_params>();
  m.impl(kernel.name, kernel.call);
}

}  // namespace multikv
