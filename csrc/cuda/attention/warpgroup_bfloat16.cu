#include "cuda/attention/launch_warpgroup.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_warpgroup_attention<Element::kBFloat16>(const AttentionProblem& p, const Context& context) {
  return launch_warpgroups<Storage<Element::kBFloat16>>(p, context);
}

}  // namespace multikv::gpu
