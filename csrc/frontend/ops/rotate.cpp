#include "frontend/check/formats.h"
#include "frontend/check/indices.h"
#include "frontend/check/rope.h"
#include "frontend/check/shapes.h"
#include "params/rotate_params.h"

namespace multikv {

namespace {

// Checks a cache [blocks, block_size, heads, head_size], or [blocks, heads, head_size / x, block_size, x], and sets its
// view and the number of heads. Returns the head size.
int64_t set_cache(Call& call, RotateCachedKeysParams& p, const Tensor& cache) {
  call.check_device("key_cache", cache);
  const bool is_packed = cache.dim() == 5;
  if (cache.dim() != 4 && !is_packed) call.fail("key_cache", "4 dimensions, or 5 (packed)", shape_text(cache));
  check_writable(call, "key_cache", cache);
  PackedKeyCache& view = p.cache;
  view.blocks = blocks_of(call, "key_cache", cache, is_packed ? 3 : 1);
  view.stride_block_bytes = stride_bytes(cache, 0);
  view.stride_row_bytes = stride_bytes(cache, is_packed ? 3 : 1);
  view.stride_head_bytes = stride_bytes(cache, is_packed ? 1 : 2);
  view.stride_vector_bytes = is_packed ? stride_bytes(cache, 2) : 0;
  const int64_t vector_size = cache.size(is_packed ? 4 : 3);
  view.vector_size = Divisor::of(vector_size > 0 ? vector_size : 1);
  p.num_heads = cache.size(is_packed ? 1 : 2);
  return is_packed ? wrapping_product(cache.size(2), vector_size) : vector_size;
}

void set_codec(Call& call, RotateCachedKeysParams& p, const Tensor& cache, const FormatName& kv_cache_dtype,
               const OptionalTensor& k_scale) {
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kCache);
  if (format.codec.is_float()) {
    const Float dtype = float_dtype(call, "key_cache", cache);
    check_float_format(call, format, dtype, "key_cache");
    p.cache.codec = float_codec(dtype);
    return;
  }
  p.cache.codec = with_element(format.codec, fp8_element(call, format, "key_cache", cache));
  if (!k_scale.has_value()) call.fail("k_scale", join({"a tensor (kv_cache_dtype is ", format.name, ")"}), "None");
  p.cache.scale_stride_head = scale_stride(call, "k_scale", *k_scale, p.num_heads);
  p.cache.scale = reinterpret_cast<const float*>(data(call, "k_scale", *k_scale));
}

void set_table(Call& call, RotateCachedKeysParams& p, const Tensor& cos_sin_cache, int64_t rotary_offset,
               int64_t head_size) {
  p.table_dtype = check_table(call, cos_sin_cache, {rotary_offset, head_size, "head size of key_cache"});
  p.num_positions = cos_sin_cache.size(0);
  p.rotary_size = cos_sin_cache.size(1);
  p.rotary_offset = rotary_offset;
  p.cos_sin_cache = token_rows(cos_sin_cache);
}

void set_tokens(Call& call, RotateCachedKeysParams& p, const Tensor& slots, const Tensor& old_positions,
                const Tensor& new_positions) {
  p.slots = {indices_of(call, "slots", slots, 1), slots.size(0)};
  p.old_positions = indices_of(call, "old_positions", old_positions, 1);
  check_size(call, "old_positions", old_positions, 0, p.slots.num_tokens, "size of slots");
  p.new_positions = indices_of(call, "new_positions", new_positions, 1);
  check_size(call, "new_positions", new_positions, 0, p.slots.num_tokens, "size of slots");
}

// Fails unless every slot is negative (padding) or in the cache, and both positions of every token whose slot is not
// padding are in the table.
void check_values(const Call& call, const RotateCachedKeysParams& p) {
  if (call.nothing_to_do() || !checks_indices(call)) return;
  const int64_t num_tokens = p.slots.num_tokens, num_slots = p.cache.blocks.num_slots();
  const HostIndices slots(call, p.slots.mapping, 1, num_tokens);
  const HostIndices old_positions(call, p.old_positions, 1, num_tokens);
  const HostIndices new_positions(call, p.new_positions, 1, num_tokens);
  const auto check_position = [&](std::string_view argument, int64_t i, int64_t position) {
    if (position >= 0 && position < p.num_positions) return;
    call.fail_index(argument, text(i), range_text("position", p.num_positions), position);
  };
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (slots[i] < 0) continue;
    if (slots[i] >= num_slots) call.fail_index("slots", text(i), "a slot below " + text(num_slots), slots[i]);
    check_position("old_positions", i, old_positions[i]);
    check_position("new_positions", i, new_positions[i]);
  }
}

}  // namespace

RotateCachedKeysParams make_rotate_cached_keys_params(Call& call, const MutableTensor& key_cache, const Tensor& slots,
                                                      const Tensor& old_positions, const Tensor& new_positions,
                                                      const Tensor& cos_sin_cache, bool is_neox,
                                                      const FormatName& kv_cache_dtype, const OptionalTensor& k_scale,
                                                      int64_t rotary_offset, const OptionalMutableTensor& k_scales) {
  RotateCachedKeysParams p{};
  const int64_t head_size = set_cache(call, p, key_cache);
  set_tokens(call, p, slots, old_positions, new_positions);
  set_table(call, p, cos_sin_cache, rotary_offset, head_size);
  set_codec(call, p, key_cache, kv_cache_dtype, k_scale);
  if (k_scales.has_value()) {
    call.fail("k_scales", "None (only formats with a scale per token and head need it)", "a tensor");
  }
  p.is_neox = is_neox;
  if (p.slots.num_tokens == 0 || p.num_heads == 0 || p.rotary_size == 0) call.set_nothing_to_do();
  check_values(call, p);
  if (call.nothing_to_do()) return p;
  p.cos_sin_cache.data = data(call, "cos_sin_cache", cos_sin_cache);
  p.cache.data = mutable_data(call, "key_cache", key_cache);
  return p;
}

}  // namespace multikv
