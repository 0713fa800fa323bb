// The ops of vLLM's namespace _C_cache_ops that multikv's kernels serve.
//
// If vLLM's op has the same arguments as multikv's op of this name, it is served with the schema and the
// make_<op>_params of csrc/ops.h. For the other ops, this file defines a schema and a make_<op>_params.
#pragma once

#include <vector>

#include "ops.h"

namespace multikv::vllm {

// vLLM's op has no argument num_blocks.
inline constexpr char concat_and_cache_mla_grouped[] =
    "concat_and_cache_mla_grouped(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache_ptrs, Tensor slot_mapping, "
    "int block_size, int block_stride, int entry_stride, Tensor? kv_scales=None, str kv_cache_dtype='auto') -> ()";
inline ConcatAndCacheMlaGroupedParams make_concat_and_cache_mla_grouped_params(
    Call& call, const Tensor& kv_c, const Tensor& k_pe, const MutableTensor& kv_cache_ptrs, const Tensor& slot_mapping,
    int64_t block_size, int64_t block_stride, int64_t entry_stride, const OptionalTensor& kv_scales,
    const FormatName& kv_cache_dtype) {
  constexpr int64_t kUnknownNumBlocks = -1;
  return multikv::make_concat_and_cache_mla_grouped_params(call, kv_c, k_pe, kv_cache_ptrs, slot_mapping, block_size,
                                                           block_stride, entry_stride, kv_scales, kv_cache_dtype,
                                                           kUnknownNumBlocks);
}

// token_to_seq is not optional in vLLM's op. It is not read here either.
inline constexpr char gather_and_maybe_dequant_cache[] =
    "gather_and_maybe_dequant_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, Tensor cu_seq_lens, "
    "Tensor token_to_seq, int num_tokens, str kv_cache_dtype, Tensor scale, Tensor? seq_starts) -> ()";
inline GatherAndMaybeDequantCacheParams make_gather_and_maybe_dequant_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    const Tensor&, int64_t num_tokens, const FormatName& kv_cache_dtype, const Tensor& scale,
    const OptionalTensor& seq_starts) {
  return multikv::make_gather_and_maybe_dequant_cache_params(
      call, src_cache, dst, block_table, cu_seq_lens, std::nullopt, num_tokens, kv_cache_dtype, scale, seq_starts);
}

// Returns the kernels for all ops of this file.
const std::vector<BoxedKernel>& kernels();

}  // namespace multikv::vllm
