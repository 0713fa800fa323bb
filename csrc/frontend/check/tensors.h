// What holds for the tensors of every op: a storage that is large enough, and the contract with autograd.
#pragma once

#include <algorithm>
#include <concepts>

#include "frontend/check/call.h"

namespace multikv {

// Fails if the storage ends before the tensor does.
inline void check_storage(const Call& call, const auto& name, const Tensor& tensor) {
  const int64_t needed = tensor.needed_bytes();
  if (needed == 0) return;
  const int64_t available = tensor.storage_bytes();
  if (available >= needed) return;
  call.fail(name(), join({"a storage with ", text(needed), " bytes from the first element on"}),
            count_text(std::max<int64_t>(available, 0), "byte"));
}

// Fails if autograd records operations on a tensor that the op writes, because ops record no gradients.
inline void check_not_recorded(const Call& call, const auto& name, const MutableTensor& tensor) {
  if (!tensor.is_recorded()) return;
  call.fail(name(), "a tensor that does not require grad (the op writes it in place: use detach() or torch.no_grad())",
            "one that requires grad");
}

// Checks all tensors of a call. `arguments` is an ArgumentsOf.
void check_tensors(const Call& call, const auto& arguments) {
  arguments.for_each_tensor([&]<class T>(const auto& name, const T& tensor) {
    check_storage(call, name, tensor);
    if constexpr (std::same_as<T, MutableTensor>) check_not_recorded(call, name, tensor);
  });
}

// Bumps the versions of all tensors that the op writes.
void bump_versions(const auto& arguments) {
  arguments.for_each_tensor([]<class T>(const auto&, const T& tensor) {
    if constexpr (std::same_as<T, MutableTensor>) tensor.bump_version();
  });
}

}  // namespace multikv
