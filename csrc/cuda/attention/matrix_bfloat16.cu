#include "cuda/attention/launch_matrix.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_matrix_attention<Element::kBFloat16>(const AttentionProblem& p, const Context& context) {
  return launch_matrix<Storage<Element::kBFloat16>>(p, context);
}

}  // namespace multikv::gpu
