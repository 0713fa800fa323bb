#include "cuda/launch.h"
#include "params/attention_params.h"

namespace multikv::gpu {

// The GPU kernels of this family do not exist yet.
template <>
cudaError_t launch(const PagedAttentionParams&, const Context&) {
  return cudaErrorNotSupported;
}

template <>
cudaError_t launch(const MergeAttnStatesParams&, const Context&) {
  return cudaErrorNotSupported;
}

}  // namespace multikv::gpu
