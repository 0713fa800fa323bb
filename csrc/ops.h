// The list of ops. Each op has a schema and a function make_<op>_params, which checks the arguments and turns them into
// the params that a backend launches. multikv/ops/ documents the arguments.
//
// The parameters of make_<op>_params after `call` are those of the schema, in the same order. If their types differ
// from those in the schema, the code does not compile (frontend/torch/schema_check.h). Two swapped parameters of one
// type still compile. frontend/ops/<family>.cpp defines the functions: a definition with other parameter types than
// the declaration here does not link. A new op also needs a line in for_each_op().
#pragma once

#include "frontend/torch/register.h"
#include "params/attention_params.h"
#include "params/blocks_params.h"
#include "params/convert_params.h"
#include "params/gather_params.h"
#include "params/indexer_params.h"
#include "params/mla_params.h"
#include "params/mla_rope_params.h"
#include "params/moves_params.h"
#include "params/norm_rope_params.h"
#include "params/reshape_and_cache_params.h"
#include "params/rotate_params.h"
#include "params/slots_params.h"
#include "params/swap_params.h"

namespace multikv {

// -- reshape_and_cache ------------------------------------------------------------------------------------------------

// Writes each token's key and value into its slot of a paged cache.
inline constexpr char reshape_and_cache_flash[] =
    "reshape_and_cache_flash(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()";
ReshapeAndCacheFlashParams make_reshape_and_cache_flash_params(Call& call, const Tensor& key, const Tensor& value,
                                                               const MutableTensor& key_cache,
                                                               const MutableTensor& value_cache,
                                                               const Tensor& slot_mapping,
                                                               const FormatName& kv_cache_dtype, const Tensor& k_scale,
                                                               const Tensor& v_scale);

// Writes each token's key and value into its slot of a cache in the packed layout of the first PagedAttention.
inline constexpr char reshape_and_cache[] =
    "reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_mapping, "
    "str kv_cache_dtype, Tensor k_scale, Tensor v_scale, bool interleaved_v=False) -> ()";
ReshapeAndCacheParams make_reshape_and_cache_params(Call& call, const Tensor& key, const Tensor& value,
                                                    const MutableTensor& key_cache, const MutableTensor& value_cache,
                                                    const Tensor& slot_mapping, const FormatName& kv_cache_dtype,
                                                    const Tensor& k_scale, const Tensor& v_scale, bool interleaved_v);

// -- mla --------------------------------------------------------------------------------------------------------------

// Writes each token's latent vector and rotary key (MLA), side by side, into its slot.
inline constexpr char concat_and_cache_mla[] =
    "concat_and_cache_mla(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache, Tensor slot_mapping, str kv_cache_dtype, "
    "Tensor scale, bool skip_scale=False) -> ()";
ConcatAndCacheMlaParams make_concat_and_cache_mla_params(Call& call, const Tensor& kv_c, const Tensor& k_pe,
                                                         const MutableTensor& kv_cache, const Tensor& slot_mapping,
                                                         const FormatName& kv_cache_dtype, const Tensor& scale,
                                                         bool skip_scale);

// Does what concat_and_cache_mla does, for many layers at once. The layers' caches are given by their addresses.
inline constexpr char concat_and_cache_mla_grouped[] =
    "concat_and_cache_mla_grouped(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache_ptrs, Tensor slot_mapping, "
    "int block_size, int block_stride, int entry_stride, Tensor? kv_scales=None, str kv_cache_dtype='auto', "
    "int num_blocks=-1) -> ()";
ConcatAndCacheMlaGroupedParams make_concat_and_cache_mla_grouped_params(
    Call& call, const Tensor& kv_c, const Tensor& k_pe, const MutableTensor& kv_cache_ptrs, const Tensor& slot_mapping,
    int64_t block_size, int64_t block_stride, int64_t entry_stride, const OptionalTensor& kv_scales,
    const FormatName& kv_cache_dtype, int64_t num_blocks);

// Concatenates the non-rotary and the rotary part of each MLA query.
inline constexpr char concat_mla_q[] = "concat_mla_q(Tensor ql_nope, Tensor q_pe, Tensor(a!) q_out) -> ()";
ConcatMlaQParams make_concat_mla_q_params(Call& call, const Tensor& ql_nope, const Tensor& q_pe,
                                          const MutableTensor& q_out);

// -- mla_rope ---------------------------------------------------------------------------------------------------------

// Applies rotary embedding to q_pe and k_pe in place, then does what concat_and_cache_mla does.
inline constexpr char concat_and_cache_mla_rope_fused[] =
    "concat_and_cache_mla_rope_fused(Tensor positions, Tensor(a!) q_pe, Tensor(b!) k_pe, Tensor kv_c, "
    "Tensor cos_sin_cache, bool is_neox, Tensor slot_mapping, Tensor(c!) kv_cache, str kv_cache_dtype, "
    "Tensor kv_cache_scale) -> ()";
ConcatAndCacheMlaRopeFusedParams make_concat_and_cache_mla_rope_fused_params(
    Call& call, const Tensor& positions, const MutableTensor& q_pe, const MutableTensor& k_pe, const Tensor& kv_c,
    const Tensor& cos_sin_cache, bool is_neox, const Tensor& slot_mapping, const MutableTensor& kv_cache,
    const FormatName& kv_cache_dtype, const Tensor& kv_cache_scale);

// -- convert ----------------------------------------------------------------------------------------------------------

// Converts a whole cache to fp8, or back.
inline constexpr char convert_fp8[] =
    "convert_fp8(Tensor(a!) dst_cache, Tensor src_cache, float scale, str kv_cache_dtype) -> ()";
ConvertFp8Params make_convert_fp8_params(Call& call, const MutableTensor& dst_cache, const Tensor& src_cache,
                                         double scale, const FormatName& kv_cache_dtype);

// -- gather -----------------------------------------------------------------------------------------------------------

// Gathers the cache entries of sequences: copies them from their blocks into consecutive rows.
inline constexpr char cp_gather_cache[] =
    "cp_gather_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, Tensor cu_seq_lens, "
    "int batch_size, Tensor? seq_starts=None) -> ()";
CpGatherCacheParams make_cp_gather_cache_params(Call& call, const Tensor& src_cache, const MutableTensor& dst,
                                                const Tensor& block_table, const Tensor& cu_seq_lens,
                                                int64_t batch_size, const OptionalTensor& seq_starts);

// Does what cp_gather_cache does, and dequantises the entries of an fp8 cache to the dtype of dst. token_to_seq is not
// read.
inline constexpr char gather_and_maybe_dequant_cache[] =
    "gather_and_maybe_dequant_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, Tensor cu_seq_lens, "
    "Tensor? token_to_seq, int num_tokens, str kv_cache_dtype, Tensor scale, Tensor? seq_starts=None) -> ()";
GatherAndMaybeDequantCacheParams make_gather_and_maybe_dequant_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    const OptionalTensor& token_to_seq, int64_t num_tokens, const FormatName& kv_cache_dtype, const Tensor& scale,
    const OptionalTensor& seq_starts);

// Gathers the keys and values of sequences from the caches of reshape_and_cache_flash or reshape_and_cache, and
// dequantises those of fp8 caches.
inline constexpr char gather_kv_cache[] =
    "gather_kv_cache(Tensor key_cache, Tensor value_cache, Tensor(a!) key, Tensor(b!) value, Tensor block_table, "
    "Tensor cu_seq_lens, str kv_cache_dtype, Tensor? k_scale=None, Tensor? v_scale=None, Tensor? seq_starts=None, "
    "int num_tokens=-1, Tensor? k_global_scale=None, Tensor? v_global_scale=None) -> ()";
GatherKvCacheParams make_gather_kv_cache_params(Call& call, const Tensor& key_cache, const Tensor& value_cache,
                                                const MutableTensor& key, const MutableTensor& value,
                                                const Tensor& block_table, const Tensor& cu_seq_lens,
                                                const FormatName& kv_cache_dtype, const OptionalTensor& k_scale,
                                                const OptionalTensor& v_scale, const OptionalTensor& seq_starts,
                                                int64_t num_tokens, const OptionalTensor& k_global_scale,
                                                const OptionalTensor& v_global_scale);

// Gathers fp8_ds_mla entries of sequences, and dequantises them to rows of bfloat16. Some entries may lie in host
// memory.
inline constexpr char cp_gather_and_upconvert_fp8_kv_cache[] =
    "cp_gather_and_upconvert_fp8_kv_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, "
    "Tensor workspace_starts, int batch_size, Tensor? seq_starts=None, Tensor? host_cache=None, "
    "Tensor? host_row_ids=None, Tensor? device_row_ids=None) -> ()";
CpGatherAndUpconvertFp8KvCacheParams make_cp_gather_and_upconvert_fp8_kv_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table,
    const Tensor& workspace_starts, int64_t batch_size, const OptionalTensor& seq_starts,
    const OptionalTensor& host_cache, const OptionalTensor& host_row_ids, const OptionalTensor& device_row_ids);

// -- indexer ----------------------------------------------------------------------------------------------------------

// Quantises each token's indexer key to e4m3 codes, with one scale per tile, and writes it into its slot of the cache.
inline constexpr char indexer_k_quant_and_cache[] =
    "indexer_k_quant_and_cache(Tensor k, Tensor(a!) kv_cache, Tensor slot_mapping, int quant_block_size, "
    "str kv_cache_dtype) -> ()";
IndexerKQuantAndCacheParams make_indexer_k_quant_and_cache_params(Call& call, const Tensor& k,
                                                                  const MutableTensor& kv_cache,
                                                                  const Tensor& slot_mapping, int64_t quant_block_size,
                                                                  const FormatName& kv_cache_dtype);

// Gathers the codes and scales of sequences from the indexer's cache into consecutive rows.
inline constexpr char cp_gather_indexer_k_quant_cache[] =
    "cp_gather_indexer_k_quant_cache(Tensor kv_cache, Tensor(a!) dst_k, Tensor(b!) dst_scale, Tensor block_table, "
    "Tensor cu_seq_lens) -> ()";
CpGatherIndexerKQuantCacheParams make_cp_gather_indexer_k_quant_cache_params(Call& call, const Tensor& kv_cache,
                                                                             const MutableTensor& dst_k,
                                                                             const MutableTensor& dst_scale,
                                                                             const Tensor& block_table,
                                                                             const Tensor& cu_seq_lens);

// -- slots ------------------------------------------------------------------------------------------------------------

// Computes the slot of each token from the block tables of the sequences, for several groups of caches at once.
inline constexpr char compute_slot_mapping[] =
    "compute_slot_mapping(Tensor[] block_tables, Tensor cu_query_lens, Tensor positions, Tensor(a!)[] slot_mappings, "
    "int[] block_sizes, Tensor? table_rows=None, int cp_world=1, int cp_rank=0, int cp_interleave=1) -> ()";
ComputeSlotMappingParams make_compute_slot_mapping_params(Call& call, const TensorList& block_tables,
                                                          const Tensor& cu_query_lens, const Tensor& positions,
                                                          const MutableTensorList& slot_mappings,
                                                          const IntList& block_sizes, const OptionalTensor& table_rows,
                                                          int64_t cp_world, int64_t cp_rank, int64_t cp_interleave);

// -- rotate -----------------------------------------------------------------------------------------------------------

// Moves cached keys to other positions: undoes their rotary embedding and applies that of the new positions.
inline constexpr char rotate_cached_keys[] =
    "rotate_cached_keys(Tensor(a!) key_cache, Tensor slots, Tensor old_positions, Tensor new_positions, "
    "Tensor cos_sin_cache, bool is_neox, str kv_cache_dtype, Tensor? k_scale=None, int rotary_offset=0, "
    "Tensor(b!)? k_scales=None) -> ()";
RotateCachedKeysParams make_rotate_cached_keys_params(Call& call, const MutableTensor& key_cache, const Tensor& slots,
                                                      const Tensor& old_positions, const Tensor& new_positions,
                                                      const Tensor& cos_sin_cache, bool is_neox,
                                                      const FormatName& kv_cache_dtype, const OptionalTensor& k_scale,
                                                      int64_t rotary_offset, const OptionalMutableTensor& k_scales);

// -- norm_rope --------------------------------------------------------------------------------------------------------

// Norms and rotates the queries and keys of a projection, and writes its keys and values into a paged cache.
inline constexpr char qk_norm_rope_cache[] =
    "qk_norm_rope_cache(Tensor qkv, Tensor(a!) q_out, Tensor(b!)? k_out, Tensor(c!) key_cache, "
    "Tensor(d!) value_cache, Tensor slot_mapping, Tensor positions, Tensor? cos_sin_cache, int num_heads, "
    "int num_kv_heads, int head_size, bool is_neox, str kv_cache_dtype, Tensor? k_scale=None, Tensor? v_scale=None, "
    "Tensor? q_scale=None, Tensor? q_weight=None, Tensor? k_weight=None, float eps=-1.0, float weight_bias=0.0, "
    "str norm_order='head', int rotary_offset=0, int[]? mrope_section=None, bool mrope_interleaved=False, "
    "Tensor(e!)? k_scales=None, Tensor(f!)? v_scales=None) -> ()";
QkNormRopeCacheParams make_qk_norm_rope_cache_params(
    Call& call, const Tensor& qkv, const MutableTensor& q_out, const OptionalMutableTensor& k_out,
    const MutableTensor& key_cache, const MutableTensor& value_cache, const Tensor& slot_mapping,
    const Tensor& positions, const OptionalTensor& cos_sin_cache, int64_t num_heads, int64_t num_kv_heads,
    int64_t head_size, bool is_neox, const FormatName& kv_cache_dtype, const OptionalTensor& k_scale,
    const OptionalTensor& v_scale, const OptionalTensor& q_scale, const OptionalTensor& q_weight,
    const OptionalTensor& k_weight, double eps, double weight_bias, const Word& norm_order, int64_t rotary_offset,
    const OptionalIntList& mrope_section, bool mrope_interleaved, const OptionalMutableTensor& k_scales,
    const OptionalMutableTensor& v_scales);

// Computes the root mean square norm over the last dimension.
inline constexpr char rms_norm[] =
    "rms_norm(Tensor(a!) out, Tensor input, Tensor? weight, float eps, float weight_bias=0.0) -> ()";
RmsNormParams make_rms_norm_params(Call& call, const MutableTensor& out, const Tensor& input,
                                   const OptionalTensor& weight, double eps, double weight_bias);

// Applies rotary embedding to queries and keys in place.
inline constexpr char rotary_embedding[] =
    "rotary_embedding(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, Tensor cos_sin_cache, "
    "bool is_neox) -> ()";
RotaryEmbeddingParams make_rotary_embedding_params(Call& call, const Tensor& positions, const MutableTensor& query,
                                                   const OptionalMutableTensor& key, int64_t head_size,
                                                   const Tensor& cos_sin_cache, bool is_neox);

// -- attention --------------------------------------------------------------------------------------------------------

// Computes attention of each query token over the visible keys and values of its sequence in a paged cache.
inline constexpr char paged_attention[] =
    "paged_attention(Tensor query, Tensor key_cache, Tensor value_cache, Tensor(a!) out, Tensor(b!)? lse, "
    "Tensor block_table, Tensor seq_lens, Tensor? cu_query_lens, int max_query_len, int max_seq_len, float scale, "
    "str kv_cache_dtype, Tensor? k_scale, Tensor? v_scale, Tensor(c!) workspace, bool causal=True, "
    "int window_left=-1, float softcap=0.0, Tensor? alibi_slopes=None, Tensor? sinks=None, "
    "Tensor? query_mask=None) -> ()";
PagedAttentionParams make_paged_attention_params(
    Call& call, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const MutableTensor& out,
    const OptionalMutableTensor& lse, const Tensor& block_table, const Tensor& seq_lens,
    const OptionalTensor& cu_query_lens, int64_t max_query_len, int64_t max_seq_len, double scale,
    const FormatName& kv_cache_dtype, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
    const MutableTensor& workspace, bool causal, int64_t window_left, double softcap,
    const OptionalTensor& alibi_slopes, const OptionalTensor& sinks, const OptionalTensor& query_mask);

// Does what paged_attention does for one query token a sequence and packed caches, with vLLM's arguments.
inline constexpr char paged_attention_v1[] =
    "paged_attention_v1(Tensor(a!) out, Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, "
    "float scale, Tensor block_tables, Tensor seq_lens, int block_size, int max_seq_len, Tensor? alibi_slopes, "
    "str kv_cache_dtype, Tensor k_scale, Tensor v_scale, int tp_rank, int blocksparse_local_blocks, "
    "int blocksparse_vert_stride, int blocksparse_block_size, int blocksparse_head_sliding_step) -> ()";
PagedAttentionParams make_paged_attention_v1_params(
    Call& call, const MutableTensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    int64_t num_kv_heads, double scale, const Tensor& block_tables, const Tensor& seq_lens, int64_t block_size,
    int64_t max_seq_len, const OptionalTensor& alibi_slopes, const FormatName& kv_cache_dtype, const Tensor& k_scale,
    const Tensor& v_scale, int64_t tp_rank, int64_t blocksparse_local_blocks, int64_t blocksparse_vert_stride,
    int64_t blocksparse_block_size, int64_t blocksparse_head_sliding_step);

// Does what paged_attention_v1 does, and uses the memory of tmp_out as its workspace.
inline constexpr char paged_attention_v2[] =
    "paged_attention_v2(Tensor(a!) out, Tensor(b!) exp_sums, Tensor(c!) max_logits, Tensor(d!) tmp_out, "
    "Tensor query, Tensor key_cache, Tensor value_cache, int num_kv_heads, float scale, Tensor block_tables, "
    "Tensor seq_lens, int block_size, int max_seq_len, Tensor? alibi_slopes, str kv_cache_dtype, Tensor k_scale, "
    "Tensor v_scale, int tp_rank, int blocksparse_local_blocks, int blocksparse_vert_stride, "
    "int blocksparse_block_size, int blocksparse_head_sliding_step) -> ()";
PagedAttentionParams make_paged_attention_v2_params(
    Call& call, const MutableTensor& out, const MutableTensor& exp_sums, const MutableTensor& max_logits,
    const MutableTensor& tmp_out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    int64_t num_kv_heads, double scale, const Tensor& block_tables, const Tensor& seq_lens, int64_t block_size,
    int64_t max_seq_len, const OptionalTensor& alibi_slopes, const FormatName& kv_cache_dtype, const Tensor& k_scale,
    const Tensor& v_scale, int64_t tp_rank, int64_t blocksparse_local_blocks, int64_t blocksparse_vert_stride,
    int64_t blocksparse_block_size, int64_t blocksparse_head_sliding_step);

// Merges the attention over two disjoint sets of keys, given as outputs and the logarithms of their softmax sums.
inline constexpr char merge_attn_states[] =
    "merge_attn_states(Tensor(a!) output, Tensor(b!)? output_lse, Tensor prefix_output, Tensor prefix_lse, "
    "Tensor suffix_output, Tensor suffix_lse, int? prefill_tokens_with_context=None, "
    "Tensor? output_scale=None) -> ()";
MergeAttnStatesParams make_merge_attn_states_params(Call& call, const MutableTensor& output,
                                                    const OptionalMutableTensor& output_lse,
                                                    const Tensor& prefix_output, const Tensor& prefix_lse,
                                                    const Tensor& suffix_output, const Tensor& suffix_lse,
                                                    std::optional<int64_t> prefill_tokens_with_context,
                                                    const OptionalTensor& output_scale);

// -- swap -------------------------------------------------------------------------------------------------------------

// Copies blocks of one tensor to blocks of another. Each tensor is on a GPU or on the host.
inline constexpr char swap_blocks[] =
    "swap_blocks(Tensor src, Tensor(a!) dst, int block_size_in_bytes, Tensor block_mapping) -> ()";
SwapBlocksParams make_swap_blocks_params(Call& call, const Tensor& src, const MutableTensor& dst,
                                         int64_t block_size_in_bytes, const Tensor& block_mapping);

// Does what swap_blocks does, for many layers at once. One mapping holds for all layers.
inline constexpr char swap_blocks_layers[] =
    "swap_blocks_layers(Tensor[] src, Tensor(a!)[] dst, int block_size_in_bytes, Tensor block_mapping) -> ()";
SwapBlocksParams make_swap_blocks_layers_params(Call& call, const TensorList& src, const MutableTensorList& dst,
                                                int64_t block_size_in_bytes, const Tensor& block_mapping);

// Copies byte ranges from addresses to addresses. The caller guarantees that the memory is valid: it is not checked.
inline constexpr char swap_blocks_batch[] =
    "swap_blocks_batch(Tensor src_ptrs, Tensor(a!) dst_ptrs, Tensor sizes, bool is_src_access_order_any=False) -> ()";
SwapBlocksBatchParams make_swap_blocks_batch_params(Call& call, const Tensor& src_ptrs, const MutableTensor& dst_ptrs,
                                                    const Tensor& sizes, bool is_src_access_order_any);

// -- blocks -----------------------------------------------------------------------------------------------------------

// Copies blocks to other blocks of the same cache, in the caches of all layers.
inline constexpr char copy_blocks_layers[] =
    "copy_blocks_layers(Tensor(a!)[] caches, Tensor block_mapping, int num_tokens=-1) -> ()";
CopyBlocksLayersParams make_copy_blocks_layers_params(Call& call, const MutableTensorList& caches,
                                                      const Tensor& block_mapping, int64_t num_tokens);

// Sets the bytes of blocks to 0, in the caches of all layers.
inline constexpr char zero_blocks[] =
    "zero_blocks(Tensor(a!)[] caches, Tensor block_ids, Tensor? first_token=None) -> ()";
ZeroBlocksParams make_zero_blocks_params(Call& call, const MutableTensorList& caches, const Tensor& block_ids,
                                         const OptionalTensor& first_token);

// Computes a hash of the bytes of each block of each layer's cache.
inline constexpr char checksum_blocks[] =
    "checksum_blocks(Tensor[] caches, Tensor block_ids, Tensor(a!) out, Tensor? num_tokens=None) -> ()";
ChecksumBlocksParams make_checksum_blocks_params(Call& call, const TensorList& caches, const Tensor& block_ids,
                                                 const MutableTensor& out, const OptionalTensor& num_tokens);

// -- moves ------------------------------------------------------------------------------------------------------------

// Copies the tokens of blocks, in all planes, to a staging tensor of any layout.
inline constexpr char pack_layers[] =
    "pack_layers(Tensor[] caches, Tensor block_ids, Tensor(a!) staging, int num_tokens=-1, int head_start=0) -> ()";
PackLayersParams make_pack_layers_params(Call& call, const TensorList& caches, const Tensor& block_ids,
                                         const MutableTensor& staging, int64_t num_tokens, int64_t head_start);

// Does the reverse of pack_layers.
inline constexpr char unpack_layers[] =
    "unpack_layers(Tensor staging, Tensor(a!)[] caches, Tensor block_ids, int num_tokens=-1, int head_start=0) -> ()";
PackLayersParams make_unpack_layers_params(Call& call, const Tensor& staging, const MutableTensorList& caches,
                                           const Tensor& block_ids, int64_t num_tokens, int64_t head_start);

// Copies tokens from slots of one list of planes to slots of another.
inline constexpr char move_tokens[] =
    "move_tokens(Tensor[] src, Tensor(a!)[] dst, Tensor src_slots, Tensor dst_slots, bool overlap=False) -> ()";
MoveTokensParams make_move_tokens_params(Call& call, const TensorList& src, const MutableTensorList& dst,
                                         const Tensor& src_slots, const Tensor& dst_slots, bool overlap);

// Moves the kept tokens of each sequence, in place, to consecutive positions from dst_start on (by default 0).
inline constexpr char compact_cache[] =
    "compact_cache(Tensor(a!)[] caches, Tensor block_table, Tensor keep, Tensor keep_offsets, "
    "Tensor? dst_start=None) -> ()";
CompactCacheParams make_compact_cache_params(Call& call, const MutableTensorList& caches, const Tensor& block_table,
                                             const Tensor& keep, const Tensor& keep_offsets,
                                             const OptionalTensor& dst_start);

// -- all --------------------------------------------------------------------------------------------------------------

// An op as a type: its schema and its make_<op>_params.
template <const auto& schema, auto make_params>
struct Op {};

// Calls visit(Op<schema, make_params>{}) for every op.
template <class Visit>
void for_each_op(Visit visit) {
  visit(Op<reshape_and_cache_flash, make_reshape_and_cache_flash_params>{});
  visit(Op<reshape_and_cache, make_reshape_and_cache_params>{});
  visit(Op<concat_and_cache_mla, make_concat_and_cache_mla_params>{});
  visit(Op<concat_and_cache_mla_grouped, make_concat_and_cache_mla_grouped_params>{});
  visit(Op<concat_mla_q, make_concat_mla_q_params>{});
  visit(Op<concat_and_cache_mla_rope_fused, make_concat_and_cache_mla_rope_fused_params>{});
  visit(Op<convert_fp8, make_convert_fp8_params>{});
  visit(Op<cp_gather_cache, make_cp_gather_cache_params>{});
  visit(Op<gather_and_maybe_dequant_cache, make_gather_and_maybe_dequant_cache_params>{});
  visit(Op<gather_kv_cache, make_gather_kv_cache_params>{});
  visit(Op<cp_gather_and_upconvert_fp8_kv_cache, make_cp_gather_and_upconvert_fp8_kv_cache_params>{});
  visit(Op<indexer_k_quant_and_cache, make_indexer_k_quant_and_cache_params>{});
  visit(Op<cp_gather_indexer_k_quant_cache, make_cp_gather_indexer_k_quant_cache_params>{});
  visit(Op<compute_slot_mapping, make_compute_slot_mapping_params>{});
  visit(Op<rotate_cached_keys, make_rotate_cached_keys_params>{});
  visit(Op<qk_norm_rope_cache, make_qk_norm_rope_cache_params>{});
  visit(Op<rms_norm, make_rms_norm_params>{});
  visit(Op<rotary_embedding, make_rotary_embedding_params>{});
  visit(Op<paged_attention, make_paged_attention_params>{});
  visit(Op<paged_attention_v1, make_paged_attention_v1_params>{});
  visit(Op<paged_attention_v2, make_paged_attention_v2_params>{});
  visit(Op<merge_attn_states, make_merge_attn_states_params>{});
  visit(Op<swap_blocks, make_swap_blocks_params>{});
  visit(Op<swap_blocks_layers, make_swap_blocks_layers_params>{});
  visit(Op<swap_blocks_batch, make_swap_blocks_batch_params>{});
  visit(Op<copy_blocks_layers, make_copy_blocks_layers_params>{});
  visit(Op<zero_blocks, make_zero_blocks_params>{});
  visit(Op<checksum_blocks, make_checksum_blocks_params>{});
  visit(Op<pack_layers, make_pack_layers_params>{});
  visit(Op<unpack_layers, make_unpack_layers_params>{});
  visit(Op<move_tokens, make_move_tokens_params>{});
  visit(Op<compact_cache, make_compact_cache_params>{});
}

// Registers a kernel for every op (frontend/torch/register.h).
void implement_ops(Library& m);

// Makes `Backend` the backend of this library, and registers a kernel of it for every op. `Backend` is a type with two
// static functions: traits() returns the BackendTraits, and run(params, call) runs an op.
template <class Backend>
void implement_ops(Library& m) {
  backend_traits = &Backend::traits();
  for_each_op([] < const auto& schema, auto make_params > (Op<schema, make_params>) { set_run<Backend>(make_params); });
  implement_ops(m);
}

}  // namespace multikv
