// THE schema. Every op has one line that states it and one line that implements it, for all backends.
// What each op does, argument by argument: multikv/ops/.
#pragma once

#include "frontend/ops/ops.h"
#include "frontend/torch/register.h"

namespace multikv {

namespace schema {

// Writes each token's key and value into its slot of a paged cache.
inline constexpr char reshape_and_cache_flash[] =
    "reshape_and_cache_flash(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()";

// The same for the packed layout of the first PagedAttention.
inline constexpr char reshape_and_cache[] =
    "reshape_and_cache(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor slot_mapping, "
    "str kv_cache_dtype, Tensor k_scale, Tensor v_scale, bool interleaved_v=False) -> ()";

// Writes each token's latent vector and rotary key (MLA), side by side, into its slot.
inline constexpr char concat_and_cache_mla[] =
    "concat_and_cache_mla(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache, Tensor slot_mapping, str kv_cache_dtype, "
    "Tensor scale, bool skip_scale=False) -> ()";

// Rotates the rotary parts of queries and key in place, then does as concat_and_cache_mla.
inline constexpr char concat_and_cache_mla_rope_fused[] =
    "concat_and_cache_mla_rope_fused(Tensor positions, Tensor(a!) q_pe, Tensor(b!) k_pe, Tensor kv_c, "
    "Tensor cos_sin_cache, bool is_neox, Tensor slot_mapping, Tensor(c!) kv_cache, str kv_cache_dtype, "
    "Tensor kv_cache_scale) -> ()";

// concat_and_cache_mla for all layers at once; caches are named by their addresses.
inline constexpr char concat_and_cache_mla_grouped[] =
    "concat_and_cache_mla_grouped(Tensor kv_c, Tensor k_pe, Tensor(a!) kv_cache_ptrs, Tensor slot_mapping, "
    "int block_size, int block_stride, int entry_stride, Tensor? kv_scales=None, str kv_cache_dtype='auto', "
    "int num_blocks=-1) -> ()";

// Puts the two parts of MLA's queries side by side.
inline constexpr char concat_mla_q[] = "concat_mla_q(Tensor ql_nope, Tensor q_pe, Tensor(a!) q_out) -> ()";

// Converts a whole cache to fp8, or back.
inline constexpr char convert_fp8[] =
    "convert_fp8(Tensor(a!) dst_cache, Tensor src_cache, float scale, str kv_cache_dtype) -> ()";

// Copies the cache entries of sequences, block by block, into consecutive rows.
inline constexpr char cp_gather_cache[] =
    "cp_gather_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, Tensor cu_seq_lens, "
    "int batch_size, Tensor? seq_starts=None) -> ()";

// The same, and from an fp8 cache back to floats.
inline constexpr char gather_and_maybe_dequant_cache[] =
    "gather_and_maybe_dequant_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, Tensor cu_seq_lens, "
    "Tensor token_to_seq, int num_tokens, str kv_cache_dtype, Tensor scale, Tensor? seq_starts=None) -> ()";

// The same from fp8_ds_mla entries to bfloat16; some of them may lie in the host's memory.
inline constexpr char cp_gather_and_upconvert_fp8_kv_cache[] =
    "cp_gather_and_upconvert_fp8_kv_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, "
    "Tensor workspace_starts, int batch_size, Tensor? seq_starts=None, Tensor? host_cache=None, "
    "Tensor? host_row_ids=None, Tensor? device_row_ids=None) -> ()";

// Writes each token's indexer key as e4m3, with a scale per tile, into its slot of the indexer's cache.
inline constexpr char indexer_k_quant_and_cache[] =
    "indexer_k_quant_and_cache(Tensor k, Tensor(a!) kv_cache, Tensor slot_mapping, int quant_block_size, "
    "str kv_cache_dtype) -> ()";

// Copies the keys and scales of sequences out of the indexer's cache.
inline constexpr char cp_gather_indexer_k_quant_cache[] =
    "cp_gather_indexer_k_quant_cache(Tensor kv_cache, Tensor(a!) dst_k, Tensor(b!) dst_scale, Tensor block_table, "
    "Tensor cu_seq_lens) -> ()";

// Copies blocks between the memories of devices and host.
inline constexpr char swap_blocks[] =
    "swap_blocks(Tensor src, Tensor(a!) dst, int block_size_in_bytes, Tensor block_mapping) -> ()";

// The same for many layers at once, with one mapping for all.
inline constexpr char swap_blocks_layers[] =
    "swap_blocks_layers(Tensor[] src, Tensor(a!)[] dst, int block_size_in_bytes, Tensor block_mapping) -> ()";

// Copies between addresses, which the caller vouches for.
inline constexpr char swap_blocks_batch[] =
    "swap_blocks_batch(Tensor src_ptrs, Tensor(a!) dst_ptrs, Tensor sizes, bool is_src_access_order_any=False) -> ()";

}  // namespace schema

inline void define_ops(Library& m) {
  m.def(schema::reshape_and_cache_flash);
  m.def(schema::reshape_and_cache);
  m.def(schema::concat_and_cache_mla);
  m.def(schema::concat_and_cache_mla_rope_fused);
  m.def(schema::concat_and_cache_mla_grouped);
  m.def(schema::concat_mla_q);
  m.def(schema::convert_fp8);
  m.def(schema::cp_gather_cache);
  m.def(schema::gather_and_maybe_dequant_cache);
  m.def(schema::cp_gather_and_upconvert_fp8_kv_cache);
  m.def(schema::indexer_k_quant_and_cache);
  m.def(schema::cp_gather_indexer_k_quant_cache);
  m.def(schema::swap_blocks);
  m.def(schema::swap_blocks_layers);
  m.def(schema::swap_blocks_batch);
}

template <class Backend>
void implement_ops(Library& m) {
  implement<Backend, schema::reshape_and_cache_flash, make_reshape_and_cache_flash_params>(m);
  implement<Backend, schema::reshape_and_cache, make_reshape_and_cache_params>(m);
  implement<Backend, schema::concat_and_cache_mla, make_concat_and_cache_mla_params>(m);
  implement<Backend, schema::concat_and_cache_mla_rope_fused, make_concat_and_cache_mla_rope_fused_params>(m);
  implement<Backend, schema::concat_and_cache_mla_grouped, make_concat_and_cache_mla_grouped_params>(m);
  implement<Backend, schema::concat_mla_q, make_concat_mla_q_params>(m);
  implement<Backend, schema::convert_fp8, make_convert_fp8_params>(m);
  implement<Backend, schema::cp_gather_cache, make_cp_gather_cache_params>(m);
  implement<Backend, schema::gather_and_maybe_dequant_cache, make_gather_and_maybe_dequant_cache_params>(m);
  implement<Backend, schema::cp_gather_and_upconvert_fp8_kv_cache, make_cp_gather_and_upconvert_fp8_kv_cache_params>(m);
  implement<Backend, schema::indexer_k_quant_and_cache, make_indexer_k_quant_and_cache_params>(m);
  implement<Backend, schema::cp_gather_indexer_k_quant_cache, make_cp_gather_indexer_k_quant_cache_params>(m);
  implement<Backend, schema::swap_blocks, make_swap_blocks_params>(m);
  implement<Backend, schema::swap_blocks_layers, make_swap_blocks_layers_params>(m);
  implement<Backend, schema::swap_blocks_batch, make_swap_blocks_batch_params>(m);
}

}  // namespace multikv
