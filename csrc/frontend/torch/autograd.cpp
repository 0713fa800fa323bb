// The stable ABI has no function that reads whether a tensor requires grad, or that bumps its version counter. Every
// torch from 2.11 to 2.15 exports C++ functions that do so in about 5 ns. They are weak symbols here, which are null in
// a torch that does not export them. A copy_ of the tensor to itself then takes their place. copy_ belongs to the
// stable ABI and does what every in-place op of PyTorch does, in about 0.1 us.
#include "frontend/torch/autograd.h"

#define MULTIKV_IF_EXPORTED_AS(symbol) asm(symbol) __attribute__((weak, visibility("default")))

extern "C" {

// bool c10::TensorImpl::requires_grad() const
bool multikv_requires_grad(const void* tensor_impl) MULTIKV_IF_EXPORTED_AS("_ZNK3c1010TensorImpl13requires_gradEv");

// const c10::VariableVersion& torch::autograd::impl::version_counter(const at::Tensor&)
const void* multikv_version_counter(AtenTensorHandle tensor)
    MULTIKV_IF_EXPORTED_AS("_ZN5torch8autograd4impl15version_counterERKN2at6TensorE");

// void torch::autograd::impl::bump_version(const at::Tensor&)
void multikv_bump_version(AtenTensorHandle tensor)
    MULTIKV_IF_EXPORTED_AS("_ZN5torch8autograd4impl12bump_versionERKN2at6TensorE");

}  // extern "C"

namespace multikv {

namespace {

// An at::Tensor is a pointer to its TensorImpl. A VariableVersion is a pointer, which is null for an inference tensor.
const void* pointer_in(const void* object) { return *static_cast<const void* const*>(object); }

}  // namespace

bool is_recorded(AtenTensorHandle tensor) {
  if (multikv_requires_grad == nullptr) return false;  // copy_ fails instead if the tensor is a leaf
  return multikv_requires_grad(pointer_in(tensor)) && aoti_torch_grad_mode_is_enabled();
}

void bump_version(AtenTensorHandle tensor) {
  if (multikv_bump_version == nullptr || multikv_version_counter == nullptr) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_copy_(tensor, tensor, /*non_blocking=*/0));
  } else if (pointer_in(multikv_version_counter(tensor)) != nullptr) {
    multikv_bump_version(tensor);
  }
}

}  // namespace multikv
