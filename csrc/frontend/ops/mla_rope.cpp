#include "frontend/check/formats.h"
#include "frontend/check/indices.h"
#include "frontend/check/rope.h"
#include "frontend/check/shapes.h"
#include "frontend/ops/mla_write.h"
#include "params/mla_rope_params.h"

namespace multikv {

namespace {

// Checks k_pe [tokens, rope_size] or [tokens, 1, rope_size].
void check_k_pe_dims(Call& call, const Tensor& k_pe) {
  call.check_device("k_pe", k_pe);
  if (k_pe.dim() == 2 || (k_pe.dim() == 3 && k_pe.size(1) == 1)) return;
  call.fail("k_pe", "2 dimensions, or 3 with 1 head", shape_text(k_pe));
}

void set_queries(Call& call, ConcatAndCacheMlaRopeFusedParams& p, const Tensor& q_pe, const Tensor& kv_c) {
  check_device_and_dim(call, "q_pe", q_pe, 3);
  check_dtype(call, "q_pe", q_pe, kv_c.dtype(), "kv_c");
  check_min_size(call, "q_pe", q_pe, 0, p.write.slots.num_tokens, "slots in slot_mapping");
  check_size(call, "q_pe", q_pe, 2, p.write.rope_size, "size of k_pe");
  check_writable(call, "q_pe", q_pe);
  p.num_heads = q_pe.size(1);
  p.q_pe = token_heads(q_pe);
}

void set_table(Call& call, ConcatAndCacheMlaRopeFusedParams& p, const Tensor& cos_sin_cache, const Tensor& q_pe) {
  check_device_and_dim(call, "cos_sin_cache", cos_sin_cache, 2);
  check_table_dtype(call, cos_sin_cache, q_pe, "q_pe");
  p.table_dtype = float_dtype(call, "cos_sin_cache", cos_sin_cache);
  check_size(call, "cos_sin_cache", cos_sin_cache, 1, p.write.rope_size, "size of k_pe");
  check_inner_stride(call, "cos_sin_cache", cos_sin_cache);
  p.num_positions = cos_sin_cache.size(0);
  p.cos_sin_cache = token_rows(cos_sin_cache);
}

}  // namespace

ConcatAndCacheMlaRopeFusedParams make_concat_and_cache_mla_rope_fused_params(
    Call& call, const Tensor& positions, const MutableTensor& q_pe, const MutableTensor& k_pe, const Tensor& kv_c,
    const Tensor& cos_sin_cache, bool is_neox, const Tensor& slot_mapping, const MutableTensor& kv_cache,
    const FormatName& kv_cache_dtype, const Tensor& kv_cache_scale) {
  ConcatAndCacheMlaRopeFusedParams p{};
  check_device_and_dim(call, "kv_c", kv_c, 2);
  check_k_pe_dims(call, k_pe);
  p.write =
      make_mla_write(call, {kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, "kv_cache_scale", kv_cache_scale});
  const int64_t num_tokens = p.write.slots.num_tokens;
  if (p.write.rope_size % 2 != 0) call.fail("k_pe", "an even size in the innermost dimension", shape_text(k_pe));
  check_not_expanded(call, "k_pe", k_pe);
  p.positions = indices_of(call, "positions", positions, 1);
  check_min_size(call, "positions", positions, 0, num_tokens, "slots in slot_mapping");
  set_queries(call, p, q_pe, kv_c);
  set_table(call, p, cos_sin_cache, q_pe);
  p.is_neox = is_neox;

  check_slots(call, p.write.slots, p.write.blocks());
  check_positions(call, p.positions, num_tokens, p.num_positions);
  if (call.nothing_to_do()) return p;
  p.cos_sin_cache.data = data(call, "cos_sin_cache", cos_sin_cache);
  p.write.kv_c.data = data(call, "kv_c", kv_c);
  p.q_pe.data = mutable_data(call, "q_pe", q_pe);
  p.write.k_pe.data = mutable_data(call, "k_pe", k_pe);
  p.write.cache.data = mutable_data(call, "kv_cache", kv_cache);
  return p;
}

}  // namespace multikv
