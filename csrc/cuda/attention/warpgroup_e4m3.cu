#include "cuda/attention/launch_warpgroup.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_warpgroup_attention<Element::kE4M3FN>(const AttentionProblem& p, const Context& context) {
  return launch_warpgroups<Storage<Element::kE4M3FN>>(p, context);
}

}  // namespace multikv::gpu
