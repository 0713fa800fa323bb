#include "frontend/check/indices.h"
#include "frontend/ops/ops.h"

namespace multikv {

namespace {

// key and value [>= num_tokens, heads, head_size], of one dtype and number of heads. Needs p.slots.
template <class Params>
void set_sources(Call& call, Params& p, const Tensor& key, const Tensor& value) {
  call.check_device_and_dim("key", key, 3);
  p.dtype = call.float_dtype("key", key);
  call.check_device_and_dim("value", value, 3);
  call.check_dtype("value", value, key.dtype(), "key");
  call.check_size("value", value, 1, key.size(1), "heads of key");
  p.num_heads = key.size(1);
  const auto set = [&](auto& write, std::string_view name, const Tensor& source) {
    call.check_min_size(name, source, 0, p.slots.num_tokens, "slots in slot_mapping");
    call.check_inner_stride(name, source);
    write.source_stride_token = source.stride(0);
    write.source_stride_head = source.stride(1);
  };
  set(p.key, "key", key);
  set(p.value, "value", value);
}

// What caches of all layouts share: blocks, format and scales. `block_size_dim`: key_cache's.
template <class Params>
void set_caches(Call& call, Params& p, const MutableTensor& key_cache, const MutableTensor& value_cache,
                int64_t block_size_dim, const FormatName& kv_cache_dtype, const Tensor& k_scale,
                const Tensor& v_scale) {
  set_blocks(call, p.slots, "key_cache", key_cache, block_size_dim);
  call.check_writable("key_cache", key_cache);
  call.check_writable("value_cache", value_cache);
  call.check_size("value_cache", value_cache, 0, key_cache.size(0), "blocks of key_cache");
  call.check_name(kv_cache_dtype, FormatNames::kCache);
  p.format = call.cache_format(kv_cache_dtype, "key_cache", key_cache, p.dtype);
  call.check_dtype("value_cache", value_cache, key_cache.dtype(), "key_cache");
  if (p.format == CacheFormat::kSame) return;
  p.key.scale_stride_head = call.scale_stride("k_scale", k_scale, p.num_heads);
  p.value.scale_stride_head = call.scale_stride("v_scale", v_scale, p.num_heads);
  if (k_scale.numel() != v_scale.numel()) {
    call.fail("v_scale", std::to_string(k_scale.numel()) + " elements like k_scale", "shape " + shape_text(v_scale));
  }
  p.key.scale = static_cast<const float*>(call.data("k_scale", k_scale));
  p.value.scale = static_cast<const float*>(call.data("v_scale", v_scale));
}

template <class Params>
void set_pointers(Call& call, Params& p, const Tensor& key, const Tensor& value, const MutableTensor& key_cache,
                  const MutableTensor& value_cache) {
  check_slots(call, p.slots);
  if (call.nothing_to_do()) return;
  p.key.source = call.data("key", key);
  p.value.source = call.data("value", value);
  p.key.cache = call.mutable_data("key_cache", key_cache);
  p.value.cache = call.mutable_data("value_cache", value_cache);
}

// The layout of one cache of reshape_and_cache_flash.
void set_flash_cache(const Call& call, CacheWrite& write, std::string_view source_name, const Tensor& source,
                     std::string_view cache_name, const MutableTensor& cache) {
  call.check_size(cache_name, cache, 2, source.size(1), "heads of key");
  if (cache.size(3) != source.size(2)) {
    call.check_size(cache_name, cache, 3, source.size(2), join({"head size of ", source_name}));
  }
  write.cache_stride_block = cache.stride(0);
  write.cache_stride_slot = cache.stride(1);
  write.cache_stride_head = cache.stride(2);
  write.head_size = source.size(2);
}

// Dimensions 2 and 4 of a packed cache: `whole` split into vectors, and the size of those.
Divisor vector_size(const Call& call, std::string_view argument, const Tensor& cache, int64_t whole,
                    std::string_view of) {
  const int64_t size = cache.size(4);
  if (size == 0 || whole % size != 0) {
    call.fail(argument, join({"a size in dimension 4 that divides ", std::to_string(whole), " (", of, ")"}),
              join({"shape ", shape_text(cache)}));
  }
  call.check_size(argument, cache, 2, whole / size, "vectors of the size of dimension 4");
  return Divisor::of(size);
}

}  // namespace

ReshapeAndCacheFlashParams make_reshape_and_cache_flash_params(Call& call, const Tensor& key, const Tensor& value,
                                                               const MutableTensor& key_cache,
                                                               const MutableTensor& value_cache,
                                                               const Tensor& slot_mapping,
                                                               const FormatName& kv_cache_dtype, const Tensor& k_scale,
                                                               const Tensor& v_scale) {
  ReshapeAndCacheFlashParams p{};
  call.check_device("key", key);
  p.slots = make_slots(call, slot_mapping);
  set_sources(call, p, key, value);
  call.check_device_and_dim("key_cache", key_cache, 4);
  call.check_device_and_dim("value_cache", value_cache, 4);
  set_flash_cache(call, p.key, "key", key, "key_cache", key_cache);
  set_flash_cache(call, p.value, "value", value, "value_cache", value_cache);
  call.check_size("value_cache", value_cache, 1, key_cache.size(1), "block size of key_cache");
  set_caches(call, p, key_cache, value_cache, 1, kv_cache_dtype, k_scale, v_scale);
  if (p.num_heads == 0 || wrapping_sum(p.key.head_size, p.value.head_size) == 0) call.set_nothing_to_do();
  set_pointers(call, p, key, value, key_cache, value_cache);
  return p;
}

ReshapeAndCacheParams make_reshape_and_cache_params(Call& call, const Tensor& key, const Tensor& value,
                                                    const MutableTensor& key_cache, const MutableTensor& value_cache,
                                                    const Tensor& slot_mapping, const FormatName& kv_cache_dtype,
                                                    const Tensor& k_scale, const Tensor& v_scale, bool interleaved_v) {
  ReshapeAndCacheParams p{};
  call.check_device("key", key);
  p.slots = make_slots(call, slot_mapping);
  set_sources(call, p, key, value);
  p.head_size = key.size(2);
  call.check_size("value", value, 2, p.head_size, "head size of key");
  call.check_device_and_dim("key_cache", key_cache, 5);
  call.check_device_and_dim("value_cache", value_cache, interleaved_v ? 5 : 4);
  set_caches(call, p, key_cache, value_cache, 3, kv_cache_dtype, k_scale, v_scale);

  call.check_size("key_cache", key_cache, 1, p.num_heads, "heads of key");
  p.key.vector_size = vector_size(call, "key_cache", key_cache, p.head_size, "head size of key");
  const int64_t block_size = key_cache.size(3);
  p.key.cache_stride_block = key_cache.stride(0);
  p.key.cache_stride_head = key_cache.stride(1);
  p.key.cache_stride_vector = key_cache.stride(2);
  p.key.cache_stride_row = key_cache.stride(3);

  call.check_size("value_cache", value_cache, 1, p.num_heads, "heads of key");
  p.value.cache_stride_block = value_cache.stride(0);
  p.value.cache_stride_head = value_cache.stride(1);
  if (interleaved_v) {
    p.value.vector_size = vector_size(call, "value_cache", value_cache, block_size, "block size of key_cache");
    p.value.cache_stride_vector = value_cache.stride(2);
    p.value.cache_stride_row = value_cache.stride(3);
  } else {  // one vector holds all slots of a block
    call.check_size("value_cache", value_cache, 3, block_size, "block size of key_cache");
    p.value.vector_size = Divisor::of(block_size);
    p.value.cache_stride_row = value_cache.stride(2);
  }
  call.check_size("value_cache", value_cache, interleaved_v ? 3 : 2, p.head_size, "head size of key");
  if (p.num_heads == 0 || p.head_size == 0) call.set_nothing_to_do();
  set_pointers(call, p, key, value, key_cache, value_cache);
  return p;
}

}  // namespace multikv
