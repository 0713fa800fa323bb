#include <algorithm>
#include <limits>

#include "frontend/check/indices.h"
#include "frontend/ops/ops.h"

namespace multikv {

namespace {

constexpr std::string_view kSlots = "slots in slot_mapping";

// What every op here asks of kv_c and k_pe, whose tokens are in dimension `token_dim`, rows of the cache in the last.
// Needs p.slots.
void set_sources(Call& call, ConcatAndCacheMlaParams& p, const Tensor& kv_c, const Tensor& k_pe, int64_t token_dim) {
  p.dtype = call.float_dtype("kv_c", kv_c);
  call.check_dtype("k_pe", k_pe, kv_c.dtype(), "kv_c");
  call.check_min_size("kv_c", kv_c, token_dim, p.slots.num_tokens, kSlots);
  call.check_min_size("k_pe", k_pe, token_dim, p.slots.num_tokens, kSlots);
  call.check_inner_stride("kv_c", kv_c);
  call.check_inner_stride("k_pe", k_pe);
  p.kv_c_stride_token = kv_c.stride(token_dim);
  p.k_pe_stride_token = k_pe.stride(token_dim);
  p.latent_size = kv_c.size(kv_c.dim() - 1);
  p.rope_size = k_pe.size(k_pe.dim() - 1);
  if (p.slots.num_tokens == 0 || wrapping_sum(p.latent_size, p.rope_size) == 0) call.set_nothing_to_do();
}

// Entries of fp8_ds_mla, in a cache whose dtype may be of any size that divides them.
void set_ds_mla_cache(const Call& call, ConcatAndCacheMlaParams& p, const Tensor& kv_c, const Tensor& k_pe,
                      const MutableTensor& kv_cache, const FormatName& kv_cache_dtype) {
  if (p.dtype == Float::kFloat32) call.fail("kv_c", "dtype float16 or bfloat16 for fp8_ds_mla", "float32");
  call.check_size("kv_c", kv_c, 1, DsMlaEntry::kLatentSize, "latent size of fp8_ds_mla");
  if (p.rope_size != 0 && p.rope_size != DsMlaEntry::kRopeSize) {
    call.fail("k_pe", "size 64 or 0 (rope size of fp8_ds_mla) in the innermost dimension",
              join({"shape ", shape_text(k_pe)}));
  }
  const int64_t element_bytes = kv_cache.element_bytes();
  const bool is_wide = element_bytes == 2 || element_bytes == 4;
  p.format = is_wide ? call.fp8_format_of_bytes(kv_cache_dtype) : call.e4m3_format("kv_cache", kv_cache);
  call.check_size("kv_cache", kv_cache, 2, DsMlaEntry::kBytes / element_bytes, "656 bytes of an fp8_ds_mla entry");
  p.kv_cache_stride_block *= element_bytes;
  p.kv_cache_stride_slot *= element_bytes;
  p.is_ds_mla = true;
}

// All but the pointers to what is read per token and to what is written. kv_c's and k_pe's devices and ranks are good.
ConcatAndCacheMlaParams make_write(Call& call, const Tensor& kv_c, const Tensor& k_pe, const MutableTensor& kv_cache,
                                   const Tensor& slot_mapping, const FormatName& kv_cache_dtype,
                                   std::string_view scale_name, const Tensor& scale, bool skip_scale) {
  ConcatAndCacheMlaParams p{};
  call.check_device_and_dim("kv_cache", kv_cache, 3);
  p.slots = make_slots(call, slot_mapping);
  set_blocks(call, p.slots, "kv_cache", kv_cache);
  set_sources(call, p, kv_c, k_pe, 0);
  call.check_writable("kv_cache", kv_cache);
  call.check_name(kv_cache_dtype, FormatNames::kMla);
  p.kv_cache_stride_block = kv_cache.stride(0);
  p.kv_cache_stride_slot = kv_cache.stride(1);
  if (kv_cache_dtype.kind == FormatName::Kind::kDsMla) {
    set_ds_mla_cache(call, p, kv_c, k_pe, kv_cache, kv_cache_dtype);
    return p;
  }
  call.check_size("kv_cache", kv_cache, 2, wrapping_sum(p.latent_size, p.rope_size), "sizes of kv_c and k_pe");
  p.format = call.cache_format(kv_cache_dtype, "kv_cache", kv_cache, p.dtype);
  if (p.format != CacheFormat::kSame && !skip_scale) p.scale = call.scale(scale_name, scale);
  return p;
}

}  // namespace

ConcatAndCacheMlaParams make_concat_and_cache_mla_params(Call& call, const Tensor& kv_c, const Tensor& k_pe,
                                                         const MutableTensor& kv_cache, const Tensor& slot_mapping,
                                                         const FormatName& kv_cache_dtype, const Tensor& scale,
                                                         bool skip_scale) {
  call.check_device_and_dim("kv_c", kv_c, 2);
  call.check_device_and_dim("k_pe", k_pe, 2);
  ConcatAndCacheMlaParams p =
      make_write(call, kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, "scale", scale, skip_scale);
  check_slots(call, p.slots);
  if (call.nothing_to_do()) return p;
  p.kv_c = call.data("kv_c", kv_c);
  p.k_pe = call.data("k_pe", k_pe);
  p.kv_cache = call.mutable_data("kv_cache", kv_cache);
  return p;
}

ConcatAndCacheMlaRopeFusedParams make_concat_and_cache_mla_rope_fused_params(
    Call& call, const Tensor& positions, const MutableTensor& q_pe, const MutableTensor& k_pe, const Tensor& kv_c,
    const Tensor& cos_sin_cache, bool is_neox, const Tensor& slot_mapping, const MutableTensor& kv_cache,
    const FormatName& kv_cache_dtype, const Tensor& kv_cache_scale) {
  ConcatAndCacheMlaRopeFusedParams p{};
  call.check_device_and_dim("kv_c", kv_c, 2);
  call.check_device("k_pe", k_pe);
  if (k_pe.dim() != 2 && (k_pe.dim() != 3 || k_pe.size(1) != 1)) {
    call.fail("k_pe", "2 dimensions, or 3 with 1 head", join({"shape ", shape_text(k_pe)}));
  }
  p.write =
      make_write(call, kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, "kv_cache_scale", kv_cache_scale, false);
  const int64_t num_tokens = p.write.slots.num_tokens, rope_size = p.write.rope_size;
  if (rope_size % 2 != 0) {
    call.fail("k_pe", "an even size in the innermost dimension", join({"shape ", shape_text(k_pe)}));
  }
  call.check_not_expanded("k_pe", k_pe);
  p.positions = call.indices("positions", positions, 1);
  call.check_min_size("positions", positions, 0, num_tokens, kSlots);

  call.check_device_and_dim("q_pe", q_pe, 3);
  call.check_dtype("q_pe", q_pe, kv_c.dtype(), "kv_c");
  call.check_min_size("q_pe", q_pe, 0, num_tokens, kSlots);
  call.check_size("q_pe", q_pe, 2, rope_size, "size of k_pe");
  call.check_writable("q_pe", q_pe);
  p.num_heads = q_pe.size(1);
  p.q_pe_stride_token = q_pe.stride(0);
  p.q_pe_stride_head = q_pe.stride(1);

  call.check_device_and_dim("cos_sin_cache", cos_sin_cache, 2);
  if (cos_sin_cache.dtype() != Dtype::kFloat32 && cos_sin_cache.dtype() != q_pe.dtype()) {
    const std::string_view other = q_pe.dtype() == Dtype::kFloat32 ? "" : ", or float32";
    call.fail("cos_sin_cache", join({"dtype ", dtype_text(q_pe), " like q_pe", other}), dtype_text(cos_sin_cache));
  }
  p.table_dtype = call.float_dtype("cos_sin_cache", cos_sin_cache);
  call.check_size("cos_sin_cache", cos_sin_cache, 1, rope_size, "size of k_pe");
  call.check_inner_stride("cos_sin_cache", cos_sin_cache);
  p.num_positions = cos_sin_cache.size(0);
  p.cos_sin_cache_stride_position = cos_sin_cache.stride(0);
  p.is_neox = is_neox;

  check_slots(call, p.write.slots);
  check_positions(call, p.positions, num_tokens, p.num_positions);
  if (call.nothing_to_do()) return p;
  p.cos_sin_cache = call.data("cos_sin_cache", cos_sin_cache);
  p.write.kv_c = call.data("kv_c", kv_c);
  p.q_pe = call.mutable_data("q_pe", q_pe);
  p.k_pe = call.mutable_data("k_pe", k_pe);
  p.write.k_pe = p.k_pe;
  p.write.kv_cache = call.mutable_data("kv_cache", kv_cache);
  return p;
}

ConcatAndCacheMlaGroupedParams make_concat_and_cache_mla_grouped_params(
    Call& call, const Tensor& kv_c, const Tensor& k_pe, const MutableTensor& kv_cache_ptrs, const Tensor& slot_mapping,
    int64_t block_size, int64_t block_stride, int64_t entry_stride, const OptionalTensor& kv_scales,
    const FormatName& kv_cache_dtype, int64_t num_blocks) {
  ConcatAndCacheMlaGroupedParams p{};
  call.check_device_and_dim("kv_c", kv_c, 3);
  call.check_device_and_dim("k_pe", k_pe, 3);
  p.num_layers = kv_c.size(0);
  call.check_size("k_pe", k_pe, 0, p.num_layers, "layers of kv_c");
  p.first.slots = make_slots(call, slot_mapping, 2);
  call.check_size("slot_mapping", slot_mapping, 0, p.num_layers, "layers of kv_c");
  set_sources(call, p.first, kv_c, k_pe, 1);
  p.kv_c_stride_layer = kv_c.stride(0);
  p.k_pe_stride_layer = k_pe.stride(0);

  call.check_device_and_dim("kv_cache_ptrs", kv_cache_ptrs, 1);
  call.check_dtype("kv_cache_ptrs", kv_cache_ptrs, Dtype::kInt64, "");
  call.check_size("kv_cache_ptrs", kv_cache_ptrs, 0, p.num_layers, "layers of kv_c");
  call.check_inner_stride("kv_cache_ptrs", kv_cache_ptrs);
  call.check_at_least("block_size", block_size, 1);
  call.check_at_least("block_stride", block_stride, 0);
  call.check_at_least("entry_stride", entry_stride, 0);
  call.check_at_least("num_blocks", num_blocks, -1);
  p.first.kv_cache_stride_block = block_stride;
  p.first.kv_cache_stride_slot = entry_stride;
  p.first.slots.block_size = Divisor::of(block_size);
  const int64_t most = std::numeric_limits<int64_t>::max() / block_size;
  p.first.slots.num_blocks = num_blocks < 0 ? most : std::min(num_blocks, most);

  call.check_name(kv_cache_dtype, FormatNames::kCache);
  if (kv_cache_dtype.is_float()) {
    call.check_float_name(kv_cache_dtype, p.first.dtype, "the input");
  } else {
    p.first.format = call.fp8_format_of_bytes(kv_cache_dtype);
    if (!kv_scales.has_value()) call.fail("kv_scales", "a tensor for an fp8 format", "None");
    call.check_device_and_dim("kv_scales", *kv_scales, 1);
    call.check_dtype("kv_scales", *kv_scales, Dtype::kFloat32, "");
    call.check_size("kv_scales", *kv_scales, 0, p.num_layers, "layers of kv_c");
    call.check_inner_stride("kv_scales", *kv_scales);
    p.kv_scales = static_cast<const float*>(call.data("kv_scales", *kv_scales));
  }
  if (num_blocks >= 0) check_slots_of_layers(call, p.first.slots, p.num_layers);
  if (p.num_layers == 0) call.set_nothing_to_do();
  if (call.nothing_to_do()) return p;
  p.first.kv_c = call.data("kv_c", kv_c);
  p.first.k_pe = call.data("k_pe", k_pe);
  p.kv_cache_ptrs = static_cast<void* const*>(call.data("kv_cache_ptrs", kv_cache_ptrs));
  return p;
}

ConcatMlaQParams make_concat_mla_q_params(Call& call, const Tensor& ql_nope, const Tensor& q_pe,
                                          const MutableTensor& q_out) {
  ConcatMlaQParams p{};
  call.check_device_and_dim("ql_nope", ql_nope, 3);
  call.check_device_and_dim("q_pe", q_pe, 3);
  call.check_device_and_dim("q_out", q_out, 3);
  call.check_same_dtype("q_pe", q_pe, ql_nope, "ql_nope");
  call.check_same_dtype("q_out", q_out, ql_nope, "ql_nope");
  p.num_tokens = ql_nope.size(0);
  p.num_heads = ql_nope.size(1);
  call.check_size("q_pe", q_pe, 0, p.num_tokens, "tokens of ql_nope");
  call.check_size("q_pe", q_pe, 1, p.num_heads, "heads of ql_nope");
  call.check_size("q_out", q_out, 0, p.num_tokens, "tokens of ql_nope");
  call.check_min_size("q_out", q_out, 1, p.num_heads, "heads of ql_nope");
  call.check_size("q_out", q_out, 2, wrapping_sum(ql_nope.size(2), q_pe.size(2)), "sizes of ql_nope and q_pe");
  call.check_inner_stride("ql_nope", ql_nope);
  call.check_inner_stride("q_pe", q_pe);
  call.check_writable("q_out", q_out);
  if (p.num_tokens == 0 || p.num_heads == 0 || q_out.size(2) == 0) {
    call.set_nothing_to_do();
    return p;
  }
  const int64_t element_bytes = q_out.element_bytes();
  p.nope_bytes = ql_nope.size(2) * element_bytes;
  p.rope_bytes = q_pe.size(2) * element_bytes;
  p.ql_nope_stride_token_bytes = ql_nope.stride(0) * element_bytes;
  p.ql_nope_stride_head_bytes = ql_nope.stride(1) * element_bytes;
  p.q_pe_stride_token_bytes = q_pe.stride(0) * element_bytes;
  p.q_pe_stride_head_bytes = q_pe.stride(1) * element_bytes;
  p.q_out_stride_token_bytes = q_out.stride(0) * element_bytes;
  p.q_out_stride_head_bytes = q_out.stride(1) * element_bytes;
  p.ql_nope = call.data("ql_nope", ql_nope);
  p.q_pe = call.data("q_pe", q_pe);
  p.q_out = call.mutable_data("q_out", q_out);
  return p;
}

}  // namespace multikv
