#include "cuda/attention/launch_warpgroup.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_warpgroup_attention<Element::kE5M2>(const AttentionProblem& p, const Context& context) {
  return launch_warpgroups<Storage<Element::kE5M2>>(p, context);
}

}  // namespace multikv::gpu
