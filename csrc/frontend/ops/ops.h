// One make_<op>_params per op: every check of its arguments, then the plain struct for the backend.
// Their parameters follow the schema in ../ops.h, argument by argument; schema_check.h holds them to it.
#pragma once

#include <optional>

#include "frontend/check/call.h"

namespace multikv {

using OptionalTensor = std::optional<Tensor>;

ReshapeAndCacheFlashParams make_reshape_and_cache_flash_params(Call& call, const Tensor& key, const Tensor& value,
                                                               const MutableTensor& key_cache,
                                                               const MutableTensor& value_cache,
                                                               const Tensor& slot_mapping,
                                                               const FormatName& kv_cache_dtype, const Tensor& k_scale,
                                                               const Tensor& v_scale);

ReshapeAndCacheParams make_reshape_and_cache_params(Call& call, const Tensor& key, const Tensor& value,
                                                    const MutableTensor& key_cache, const MutableTensor& value_cache,
                                                    const Tensor& slot_mapping, const FormatName& kv_cache_dtype,
                                                    const Tensor& k_scale, const Tensor& v_scale, bool interleaved_v);

ConcatAndCacheMlaParams make_concat_and_cache_mla_params(Call& call, const Tensor& kv_c, const Tensor& k_pe,
                                                         const MutableTensor& kv_cache, const Tensor& slot_mapping,
                                                         const FormatName& kv_cache_dtype, const Tensor& scale,
                                                         bool skip_scale);

ConcatAndCacheMlaRopeFusedParams make_concat_and_cache_mla_rope_fused_params(
    Call& call, const Tensor& positions, const MutableTensor& q_pe, const MutableTensor& k_pe, const Tensor& kv_c,
    const Tensor& cos_sin_cache, bool is_neox, const Tensor& slot_mapping, const MutableTensor& kv_cache,
    const FormatName& kv_cache_dtype, const Tensor& kv_cache_scale);

ConcatAndCacheMlaGroupedParams make_concat_and_cache_mla_grouped_params(
    Call& call, const Tensor& kv_c, const Tensor& k_pe, const MutableTensor& kv_cache_ptrs, const Tensor& slot_mapping,
    int64_t block_size, int64_t block_stride, int64_t entry_stride, const OptionalTensor& kv_scales,
    const FormatName& kv_cache_dtype, int64_t num_blocks);

ConcatMlaQParams make_concat_mla_q_params(Call& call, const Tensor& ql_nope, const Tensor& q_pe,
                                          const MutableTensor& q_out);

ConvertFp8Params make_convert_fp8_params(Call& call, const MutableTensor& dst_cache, const Tensor& src_cache,
                                         double scale, const FormatName& kv_cache_dtype);

CpGatherCacheParams make_cp_gather_cache_params(Call& call, const Tensor& src_cache, const MutableTensor& dst,
                                                const Tensor& block_table, const Tensor& cu_seq_lens,
                                                int64_t batch_size, const OptionalTensor& seq_starts);

GatherAndMaybeDequantCacheParams make_gather_and_maybe_dequant_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    const Tensor& token_to_seq, int64_t num_tokens, const FormatName& kv_cache_dtype, const Tensor& scale,
    const OptionalTensor& seq_starts);

CpGatherAndUpconvertFp8KvCacheParams make_cp_gather_and_upconvert_fp8_kv_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table,
    const Tensor& workspace_starts, int64_t batch_size, const OptionalTensor& seq_starts,
    const OptionalTensor& host_cache, const OptionalTensor& host_row_ids, const OptionalTensor& device_row_ids);

IndexerKQuantAndCacheParams make_indexer_k_quant_and_cache_params(Call& call, const Tensor& k,
                                                                  const MutableTensor& kv_cache,
                                                                  const Tensor& slot_mapping, int64_t quant_block_size,
                                                                  const FormatName& kv_cache_dtype);

CpGatherIndexerKQuantCacheParams make_cp_gather_indexer_k_quant_cache_params(Call& call, const Tensor& kv_cache,
                                                                             const MutableTensor& dst_k,
                                                                             const MutableTensor& dst_scale,
                                                                             const Tensor& block_table,
                                                                             const Tensor& cu_seq_lens);

SwapBlocksParams make_swap_blocks_params(Call& call, const Tensor& src, const MutableTensor& dst,
                                         int64_t block_size_in_bytes, const Tensor& block_mapping);

SwapBlocksParams make_swap_blocks_layers_params(Call& call, const TensorList& src, const MutableTensorList& dst,
                                                int64_t block_size_in_bytes, const Tensor& block_mapping);

SwapBlocksBatchParams make_swap_blocks_batch_params(Call& call, const Tensor& src_ptrs, const MutableTensor& dst_ptrs,
                                                    const Tensor& sizes, bool is_src_access_order_any);

}  // namespace multikv
