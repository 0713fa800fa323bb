#include "cuda/attention/launch_matrix.cuh"

namespace multikv::gpu {

template <>
cudaError_t launch_matrix_attention<Element::kE4M3FN>(const AttentionProblem& p, const Context& context) {
  return launch_matrix<Storage<Element::kE4M3FN>>(p, context);
}

}  // namespace multikv::gpu
