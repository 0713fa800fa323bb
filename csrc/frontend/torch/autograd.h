// What PyTorch's autograd knows of a tensor that an op writes.
#pragma once

#include <torch/csrc/stable/library.h>

namespace multikv {

// Returns whether autograd records operations on the tensor now: it requires grad, and grad mode is on.
bool is_recorded(AtenTensorHandle tensor);

// Tells autograd that the elements change. A backward pass that needs the old elements raises an error then. All views
// of a tensor share one version counter. An inference tensor has none, because no backward pass can need its elements.
void bump_version(AtenTensorHandle tensor);

}  // namespace multikv
