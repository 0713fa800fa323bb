#include "frontend.h"
#include "indices.h"

namespace multikv {

namespace {

// The checks that key and value share: the source's shape against slots and heads, the cache's against the source.
CacheWrite make_write(Call& call, std::string_view source_name, const Tensor& source, std::string_view cache_name,
                      const MutableTensor& cache, int64_t num_tokens, int64_t num_heads) {
  call.check_device(cache_name, cache);
  call.check_dim(cache_name, cache, 4);
  call.check_min_rows(source_name, source, num_tokens, "slots in slot_mapping");
  call.check_size(source_name, source, 1, num_heads, "heads of key");
  call.check_size(cache_name, cache, 2, num_heads, "heads of key");
  call.check_size(cache_name, cache, 3, source.size(2), std::string("head size of ").append(source_name));
  call.check_inner_stride(source_name, source);
  call.check_inner_stride(cache_name, cache);
  call.check_not_expanded(cache_name, cache);
  CacheWrite write{};
  write.source_stride_token = source.stride(0);
  write.source_stride_head = source.stride(1);
  write.cache_stride_block = cache.stride(0);
  write.cache_stride_slot = cache.stride(1);
  write.cache_stride_head = cache.stride(2);
  write.head_size = source.size(2);
  return write;
}

}  // namespace

ReshapeAndCacheFlashParams make_reshape_and_cache_flash_params(
    Call& call, const Tensor& key, const Tensor& value, const MutableTensor& key_cache, const MutableTensor& value_cache,
    const Tensor& slot_mapping, const FormatName& kv_cache_dtype, const Tensor& k_scale, const Tensor& v_scale) {
  ReshapeAndCacheFlashParams p{};
  call.check_device("key", key);
  call.check_dim("key", key, 3);
  p.dtype = call.float_dtype("key", key);
  call.check_device("value", value);
  call.check_dim("value", value, 3);
  call.check_dtype("value", value, key.dtype(), "key");
  p.slot_mapping = call.indices("slot_mapping", slot_mapping, 1);
  p.num_tokens = slot_mapping.size(0);
  p.num_heads = key.size(1);

  p.key = make_write(call, "key", key, "key_cache", key_cache, p.num_tokens, p.num_heads);
  p.value = make_write(call, "value", value, "value_cache", value_cache, p.num_tokens, p.num_heads);
  call.check_size("value_cache", value_cache, 0, key_cache.size(0), "blocks of key_cache");
  call.check_size("value_cache", value_cache, 1, key_cache.size(1), "block size of key_cache");
  p.format = call.cache_format(kv_cache_dtype, "key_cache", key_cache, p.dtype);
  call.check_dtype("value_cache", value_cache, key_cache.dtype(), "key_cache");
  if (key_cache.size(1) == 0) call.fail("key_cache", "a block size of at least 1", "shape " + shape_text(key_cache));
  p.num_blocks = key_cache.size(0);
  p.block_size = Divisor::of(key_cache.size(1));

  if (p.format != CacheFormat::kSame) {
    p.key.scale_stride_head = call.scale_stride("k_scale", k_scale, p.num_heads);
    p.value.scale_stride_head = call.scale_stride("v_scale", v_scale, p.num_heads);
    if (k_scale.numel() != v_scale.numel()) {
      call.fail("v_scale", std::to_string(k_scale.numel()) + " elements like k_scale", "shape " + shape_text(v_scale));
    }
    p.key.scale = static_cast<const float*>(call.data("k_scale", k_scale));
    p.value.scale = static_cast<const float*>(call.data("v_scale", v_scale));
  }
  if (p.num_tokens == 0 || p.num_heads * (p.key.head_size + p.value.head_size) == 0) {
    call.set_nothing_to_do();
    return p;
  }
  check_slots(call, "slot_mapping", p.slot_mapping, p.num_tokens, p.num_slots());
  p.key.source = call.data("key", key);
  p.value.source = call.data("value", value);
  p.key.cache = call.mutable_data("key_cache", key_cache);
  p.value.cache = call.mutable_data("value_cache", value_cache);
  return p;
}

}  // namespace multikv
