#include "frontend/check/formats.h"
#include "frontend/check/indices.h"
#include "frontend/check/packed_caches.h"
#include "frontend/check/shapes.h"
#include "params/reshape_and_cache_params.h"

namespace multikv {

namespace {

// Checks key and value [tokens, heads, head_size], which may have more tokens than slot_mapping, and sets what both
// layouts take from them.
template <class Params>
void set_sources(Call& call, Params& p, const Tensor& key, const Tensor& value, const Tensor& slot_mapping) {
  call.check_device("key", key);
  p.slots = make_slots(call, slot_mapping);
  check_dim(call, "key", key, 3);
  p.dtype = float_dtype(call, "key", key);
  check_device_and_dim(call, "value", value, 3);
  check_dtype(call, "value", value, key.dtype(), "key");
  check_size(call, "value", value, 1, key.size(1), "heads of key");
  p.num_heads = key.size(1);
  const auto set = [&](auto& write, std::string_view name, const Tensor& source) {
    check_min_size(call, name, source, 0, p.slots.num_tokens, "slots in slot_mapping");
    check_inner_stride(call, name, source);
    write.source = token_heads(source);
  };
  set(p.key, "key", key);
  set(p.value, "value", value);
}

struct Caches {
  const MutableTensor &key, &value;
  int64_t key_block_size_dim;  // the dimension of `key` whose size is the block size
};

struct Scales {
  const Tensor &k, &v;
};

template <class Params>
void set_scales(Call& call, Params& p, const Scales& scales) {
  p.key.cache.scale_stride_head = scale_stride(call, "k_scale", scales.k, p.num_heads);
  p.value.cache.scale_stride_head = scale_stride(call, "v_scale", scales.v, p.num_heads);
  if (scales.k.numel() != scales.v.numel()) {
    call.fail("v_scale", count_text(scales.k.numel(), "element") + " like k_scale", shape_text(scales.v));
  }
  p.key.cache.scale = reinterpret_cast<const float*>(data(call, "k_scale", scales.k));
  p.value.cache.scale = reinterpret_cast<const float*>(data(call, "v_scale", scales.v));
}

// Checks the caches, and sets what both layouts take from them: blocks, codec and scales.
template <class Params>
void set_caches(Call& call, Params& p, const Caches& caches, const FormatName& kv_cache_dtype, const Scales& scales) {
  const Blocks blocks = blocks_of(call, "key_cache", caches.key, caches.key_block_size_dim);
  check_writable(call, "key_cache", caches.key);
  check_writable(call, "value_cache", caches.value);
  check_size(call, "value_cache", caches.value, 0, caches.key.size(0), "blocks of key_cache");
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kCache);
  const Codec codec = cache_codec(call, format, "key_cache", caches.key, p.dtype);
  check_dtype(call, "value_cache", caches.value, caches.key.dtype(), "key_cache");
  const auto set = [&](CacheView& view, const Tensor& cache) {
    view.blocks = blocks;
    view.codec = codec;
    view.stride_block_bytes = stride_bytes(cache, 0);
  };
  set(p.key.cache, caches.key);
  set(p.value.cache, caches.value);
  if (!codec.is_float()) set_scales(call, p, scales);
}

template <class Params>
void set_addresses(Call& call, Params& p, const Tensor& key, const Tensor& value, const Caches& caches) {
  check_slots(call, p.slots, p.blocks());
  if (call.nothing_to_do()) return;
  p.key.source.data = data(call, "key", key);
  p.value.source.data = data(call, "value", value);
  p.key.cache.data = mutable_data(call, "key_cache", caches.key);
  p.value.cache.data = mutable_data(call, "value_cache", caches.value);
}

// Checks a cache [blocks, block_size, heads, head_size], and sets its strides within a block.
void set_flash_cache(const Call& call, FlashWrite& write, std::string_view source_name, const Tensor& source,
                     std::string_view cache_name, const Tensor& cache) {
  check_size(call, cache_name, cache, 2, source.size(1), "heads of key");
  check_size(call, cache_name, cache, 3, source.size(2), [&] { return join({"head size of ", source_name}); });
  write.cache.stride_slot_bytes = stride_bytes(cache, 1);
  write.cache.stride_head_bytes = stride_bytes(cache, 2);
  write.head_size = source.size(2);
}

}  // namespace

ReshapeAndCacheFlashParams make_reshape_and_cache_flash_params(Call& call, const Tensor& key, const Tensor& value,
                                                               const MutableTensor& key_cache,
                                                               const MutableTensor& value_cache,
                                                               const Tensor& slot_mapping,
                                                               const FormatName& kv_cache_dtype, const Tensor& k_scale,
                                                               const Tensor& v_scale) {
  ReshapeAndCacheFlashParams p{};
  const Caches caches{key_cache, value_cache, 1};
  set_sources(call, p, key, value, slot_mapping);
  check_device_and_dim(call, "key_cache", key_cache, 4);
  check_device_and_dim(call, "value_cache", value_cache, 4);
  set_flash_cache(call, p.key, "key", key, "key_cache", key_cache);
  set_flash_cache(call, p.value, "value", value, "value_cache", value_cache);
  check_size(call, "value_cache", value_cache, 1, key_cache.size(1), "block size of key_cache");
  set_caches(call, p, caches, kv_cache_dtype, {k_scale, v_scale});
  if (p.num_heads == 0 || wrapping_sum(p.key.head_size, p.value.head_size) == 0) call.set_nothing_to_do();
  set_addresses(call, p, key, value, caches);
  return p;
}

ReshapeAndCacheParams make_reshape_and_cache_params(Call& call, const Tensor& key, const Tensor& value,
                                                    const MutableTensor& key_cache, const MutableTensor& value_cache,
                                                    const Tensor& slot_mapping, const FormatName& kv_cache_dtype,
                                                    const Tensor& k_scale, const Tensor& v_scale, bool interleaved_v) {
  ReshapeAndCacheParams p{};
  const Caches caches{key_cache, value_cache, 3};
  set_sources(call, p, key, value, slot_mapping);
  p.head_size = key.size(2);
  check_size(call, "value", value, 2, p.head_size, "head size of key");
  check_device_and_dim(call, "key_cache", key_cache, 5);
  check_device_and_dim(call, "value_cache", value_cache, interleaved_v ? 5 : 4);
  set_caches(call, p, caches, kv_cache_dtype, {k_scale, v_scale});
  set_packed_keys(call, p.key.cache, key_cache, {p.num_heads, p.head_size});
  set_packed_values(call, p.value.cache, value_cache, {p.num_heads, p.head_size});
  if (p.num_heads == 0 || p.head_size == 0) call.set_nothing_to_do();
  set_addresses(call, p, key, value, caches);
  return p;
}

}  // namespace multikv
