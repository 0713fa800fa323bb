// Chooses the kernels of paged_attention.
#include "cuda/attention/launch_attention.h"
#include "vendor/matrix.cuh"

namespace multikv::gpu {
namespace {

// The results of kernels with matrix instructions differ from those of the portable one. So the choice depends on sizes
// and formats alone, and never on lengths, layouts or alignment.
bool uses_matrix_instructions(const AttentionProblem& p) {
  if (!kHasMatrixInstructions || p.dtype == Float::kFloat32) return false;
  if (std::max(p.key_size, p.value_size) > kMaxMatrixHeadSize) return false;
  return is_float(p.element) || p.element == Element::kE4M3FN || p.element == Element::kE5M2;
}

cudaError_t launch_matrix(const AttentionProblem& p, const Context& context) {
  switch (p.element) {
    case Element::kBFloat16: return launch_matrix_attention<Element::kBFloat16>(p, context);
    case Element::kFloat16: return launch_matrix_attention<Element::kFloat16>(p, context);
    case Element::kE4M3FN: return launch_matrix_attention<Element::kE4M3FN>(p, context);
    case Element::kE5M2: return launch_matrix_attention<Element::kE5M2>(p, context);
    case Element::kFloat32:
    case Element::kE4M3FNUZ:
    case Element::kE5M2FNUZ:
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  return cudaErrorNotSupported;
}

}  // namespace

template <>
cudaError_t launch(const PagedAttentionParams& p, const Context& context) {
  const AttentionSequences& sequences = p.sequences;
  if (sequences.num_rows == 0 || sequences.num_sequences == 0 || sequences.max_query_len == 0) return cudaSuccess;
  if (p.num_query_heads == 0) return cudaSuccess;
  const AttentionProblem problem = problem_of(p);
  if (uses_matrix_instructions(problem)) return launch_matrix(problem, context);
  return launch_portable_attention(problem, context);
}

}  // namespace multikv::gpu
