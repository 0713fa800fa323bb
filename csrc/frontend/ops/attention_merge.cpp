#include <algorithm>
#include <iterator>

#include "frontend/check/formats.h"
#include "frontend/check/shapes.h"
#include "params/attention_params.h"

namespace multikv {

namespace {

// Checks a tensor [heads, tokens] of float32, and returns its view without an address.
HeadTokenFloats check_lse(Call& call, std::string_view argument, const Tensor& lse, const MergeAttnStatesParams& p) {
  check_device_and_dim(call, argument, lse, 2);
  check_dtype(call, argument, lse, Dtype::kFloat32);
  check_size(call, argument, lse, 0, p.num_heads, "heads of output");
  check_min_size(call, argument, lse, 1, p.num_tokens, "tokens of output");
  return {nullptr, stride_bytes(lse, 0), stride_bytes(lse, 1)};
}

// Checks the output of a state. The prefix is checked first, and determines the dtype.
TokenHeads check_state_output(Call& call, std::string_view argument, const Tensor& output,
                              const MergeAttnStatesParams& p) {
  check_device_and_dim(call, argument, output, 3);
  check_min_size(call, argument, output, 0, p.num_tokens, "tokens of output");
  check_size(call, argument, output, 1, p.num_heads, "heads of output");
  check_size(call, argument, output, 2, p.head_size, "head size of output");
  check_inner_stride(call, argument, output);
  return token_heads(output);
}

// Checks the dtypes. With a scale the output is a float8 tensor, without one it has the dtype of the states.
void set_output_codec(Call& call, MergeAttnStatesParams& p, const Tensor& output, const Tensor& prefix_output,
                      const OptionalTensor& output_scale) {
  if (!output_scale.has_value()) {
    p.codec = float_codec(p.dtype);
    check_dtype(call, "output", output, prefix_output.dtype(), "prefix_output");
    return;
  }
  const auto* element = std::find_if(std::begin(kFp8Elements), std::end(kFp8Elements),
                                     [&](Element fp8) { return output.dtype() == dtype_of(fp8); });
  if (element == std::end(kFp8Elements)) call.fail("output", "a float8 dtype with output_scale", dtype_text(output));
  p.codec = format_rows::scaled(*element);
  p.output_scale = scale_data(call, "output_scale", *output_scale);
}

}  // namespace

MergeAttnStatesParams make_merge_attn_states_params(Call& call, const MutableTensor& output,
                                                    const OptionalMutableTensor& output_lse,
                                                    const Tensor& prefix_output, const Tensor& prefix_lse,
                                                    const Tensor& suffix_output, const Tensor& suffix_lse,
                                                    std::optional<int64_t> prefill_tokens_with_context,
                                                    const OptionalTensor& output_scale) {
  MergeAttnStatesParams p{};
  check_device_and_dim(call, "output", output, 3);
  p.num_tokens = output.size(0);
  p.num_heads = output.size(1);
  p.head_size = output.size(2);
  check_writable(call, "output", output);
  p.output = token_heads(output);
  p.prefix.output = check_state_output(call, "prefix_output", prefix_output, p);
  p.dtype = float_dtype(call, "prefix_output", prefix_output);
  p.prefix.lse = check_lse(call, "prefix_lse", prefix_lse, p);
  p.suffix.output = check_state_output(call, "suffix_output", suffix_output, p);
  check_dtype(call, "suffix_output", suffix_output, prefix_output.dtype(), "prefix_output");
  p.suffix.lse = check_lse(call, "suffix_lse", suffix_lse, p);
  set_output_codec(call, p, output, prefix_output, output_scale);
  if (output_lse.has_value()) {
    p.output_lse = check_lse(call, "output_lse", *output_lse, p);
    check_not_expanded(call, "output_lse", *output_lse);
  }
  p.num_merged_tokens = prefill_tokens_with_context.value_or(p.num_tokens);
  check_at_least(call, "prefill_tokens_with_context", p.num_merged_tokens, 0);
  if (p.num_tokens == 0 || p.num_heads == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.prefix.output.data = data(call, "prefix_output", prefix_output);
  p.prefix.lse.data = data(call, "prefix_lse", prefix_lse);
  p.suffix.output.data = data(call, "suffix_output", suffix_output);
  p.suffix.lse.data = data(call, "suffix_lse", suffix_lse);
  p.output.data = mutable_data(call, "output", output);
  if (output_lse.has_value()) p.output_lse.data = mutable_data(call, "output_lse", *output_lse);
  return p;
}

}  // namespace multikv
