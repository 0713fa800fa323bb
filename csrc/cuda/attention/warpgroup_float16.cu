#include "cuda/attention/launch_warpgroup.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_warpgroup_attention<Element::kFloat16>(const AttentionProblem& p, const Context& context) {
  return launch_warpgroups<Storage<Element::kFloat16>>(p, context);
}

}  // namespace multikv::gpu
