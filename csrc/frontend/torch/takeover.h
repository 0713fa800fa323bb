// Registers kernels for ops of another library's namespace, while the process runs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "frontend/torch/register.h"

namespace multikv {

// Returns the names of the kernels' ops, separated by commas.
std::string op_names(const std::vector<BoxedKernel>& kernels);

// Returns what a kernel needs to know of a schema: the types and names of the arguments, in their order, and the
// results. Alias sets and default values are left out, because they do not change what the dispatcher passes.
std::string signature(std::string_view schema);

// Registers the kernel of op `name` in a namespace, under a dispatch key. A kernel that is registered there is replaced
// until give_back(). `schema` is the schema of the op, as PyTorch prints it; nullptr if the op does not exist in the
// namespace: it is then defined with the kernel's schema, for the rest of the process. Returns nullptr, or the text of
// the reason why registration failed, which is valid until the thread's next call: there is no such kernel, the schema
// has another signature than the kernel's, or PyTorch threw an exception.
//
// No other thread may call take_over, give_back or the op at the same time.
const char* take_over(const std::vector<BoxedKernel>& kernels, const char* ns, const char* dispatch_key,
                      std::string_view name, const char* schema);

// Removes all kernels that take_over has registered: the kernels that they replaced are back.
//
// No other thread may call take_over, give_back or the ops at the same time.
void give_back();

}  // namespace multikv
