#include "cuda/attention/launch_matrix.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_matrix_attention<Element::kE5M2>(const AttentionProblem& p, const Context& context) {
  return launch_matrix<Storage<Element::kE5M2>>(p, context);
}

}  // namespace multikv::gpu
