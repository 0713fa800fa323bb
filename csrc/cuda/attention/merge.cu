// merge_attn_states: joins the results of attention over two sets of keys.
#include "cuda/cache/slots.cuh"
#include "cuda/core/fp8_convert.cuh"
#include "cuda/core/grid.h"
#include "cuda/launch.h"
#include "params/attention_params.h"

namespace multikv::gpu {
namespace {

// How one head of one token of the output is computed from the prefix and the suffix.
struct MergeWeights {
  float prefix, suffix;
  bool is_prefix, is_suffix;  // the head is a copy of that of the prefix or of the suffix
  bool is_empty;
  float lse;
};

__device__ inline MergeWeights merge_weights(float prefix, float suffix) {
  const bool has_prefix = fabsf(prefix) != __builtin_inff(), has_suffix = fabsf(suffix) != __builtin_inff();
  if (!has_prefix && !has_suffix) return {0, 0, false, false, true, -__builtin_inff()};
  if (!has_suffix) return {1, 0, true, false, false, prefix};
  if (!has_prefix) return {0, 1, false, true, false, suffix};
  const float largest = fmaxf(prefix, suffix);
  const float a = expf(prefix - largest), b = expf(suffix - largest), sum = a + b;
  return {a / sum, b / sum, false, false, false, largest + logf(sum)};
}

__device__ inline float* element_of(const HeadTokenFloats& floats, int64_t head, int64_t token) {
  return reinterpret_cast<float*>(floats.data + head * floats.stride_head_bytes + token * floats.stride_token_bytes);
}

// Writes the merged elements to `to`, quantised if there is a scale.
template <Float kDtype, int kElements>
__device__ __forceinline__ void write_merged(const MergeAttnStatesParams& p, char* to, const MergeWeights& weights,
                                             const FloatPack<kDtype, kElements>& prefix,
                                             const FloatPack<kDtype, kElements>& suffix) {
  const auto merged = [&](int i) {
    const float a = element<kDtype>(prefix.words, i), b = element<kDtype>(suffix.words, i);
    return weights.is_prefix   ? a
           : weights.is_suffix ? b
           : weights.is_empty  ? 0.0f
                               : a * weights.prefix + b * weights.suffix;
  };
  if (p.output_scale != nullptr) {
    const Quotient quotient(*p.output_scale);
    const auto floats = pack_floats<Float::kFloat32, kElements>(merged);
    const auto divided = [&](float x) { return divide(quotient, x); };
    quantise<Float::kFloat32, kElements>(floats.words, p.codec.element, divided).write(to);
    return;
  }
  FloatPack<kDtype, kElements> out = weights.is_prefix ? prefix : suffix;
  if (!weights.is_prefix && !weights.is_suffix) out = pack_floats<kDtype, kElements>(merged);
  out.write(to);
}

// A thread merges kElements neighbouring elements of one head.
template <Float kDtype, int kElements>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 8)
    merge_attn_states_kernel(const MULTIKV_GRID_CONSTANT MergeAttnStatesParams p, Divisor vectors, Divisor heads) {
  using Elements = FloatPack<kDtype, kElements>;
  const int64_t index = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const auto row = static_cast<int64_t>(quotient_of(index, vectors));
  const auto token = static_cast<int64_t>(quotient_of(row, heads));
  if (token >= p.num_tokens) return;
  const int64_t vector = index - row * vectors.signed_value(), head = row - token * heads.signed_value();
  const int64_t first = vector * kElements;
  const float suffix_lse = *element_of(p.suffix.lse, head, token);
  MergeWeights weights = {0, 1, false, true, false, suffix_lse};
  if (token < p.num_merged_tokens) weights = merge_weights(*element_of(p.prefix.lse, head, token), suffix_lse);

  constexpr int kBytes = static_cast<int>(num_bytes(kDtype));
  Elements prefix{}, suffix{};
  if (!weights.is_suffix && !weights.is_empty)
    prefix = Elements::read(p.prefix.output.head(token, head) + first * kBytes);
  if (!weights.is_prefix && !weights.is_empty)
    suffix = Elements::read(p.suffix.output.head(token, head) + first * kBytes);
  const int output_bytes = p.output_scale != nullptr ? 1 : kBytes;
  write_merged<kDtype, kElements>(p, p.output.head(token, head) + first * output_bytes, weights, prefix, suffix);
  if (vector == 0 && p.output_lse.is_given()) *element_of(p.output_lse, head, token) = weights.lse;
}

}  // namespace

template <>
cudaError_t launch(const MergeAttnStatesParams& p, const Context& context) {
  constexpr int kWide = 8;
  const AlignmentBits inputs = p.prefix.output.alignment_bits() | p.suffix.output.alignment_bits();
  const bool is_wide = inputs.widest(16) == 16 && p.head_size % kWide == 0 &&
                       p.output.alignment_bits().widest(16) >= (p.codec.is_float() ? 16 : 8);
  const int64_t vectors = p.head_size / (is_wide ? kWide : 1), threads = p.num_tokens * p.num_heads * vectors;
  if (threads == 0) return cudaSuccess;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(threads, kThreads));
  with_dtype(p.dtype, [&]<Float kDtype>() {
    const auto kernel = is_wide ? merge_attn_states_kernel<kDtype, kWide> : merge_attn_states_kernel<kDtype, 1>;
    kernel<<<blocks, kThreads, 0, context.stream>>>(p, Divisor::of(vectors), Divisor::of(p.num_heads));
  });
  return cudaGetLastError();
}

}  // namespace multikv::gpu
