// The check and the version bumps that every op makes for PyTorch's autograd.
#pragma once

#include "frontend/check/call.h"

namespace multikv {

// Fails if autograd records operations on a tensor that the op writes, because ops record no gradients. `arguments` is
// an ArgumentsOf.
void check_not_recorded(const Call& call, const auto& arguments) {
  arguments.for_each_written([&](const auto& name, const MutableTensor& tensor) {
    if (!tensor.is_recorded()) return;
    call.fail(name(),
              "a tensor that does not require grad (the op writes it in place: use detach() or torch.no_grad())",
              "one that requires grad");
  });
}

// Bumps the versions of all tensors that the op writes.
void bump_versions(const auto& arguments) {
  arguments.for_each_written([](const auto&, const MutableTensor& tensor) { tensor.bump_version(); });
}

}  // namespace multikv
