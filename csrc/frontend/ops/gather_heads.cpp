// The gathers of heads: of keys and values, or of whole entries as one head.
#include <algorithm>

#include "frontend/check/formats.h"
#include "frontend/check/packed_caches.h"
#include "frontend/check/sequence_bounds.h"
#include "frontend/check/shapes.h"
#include "params/gather_params.h"

namespace multikv {

namespace {

// Returns the number of output rows that the argument num_tokens means: all rows of `output` if it is -1.
int64_t rows_to_write(const Call& call, std::string_view name, const Tensor& output, int64_t num_tokens) {
  if (num_tokens == -1) return output.size(0);
  if (num_tokens < 0) call.fail("num_tokens", join({"at least 0, or -1 (all rows of ", name, ")"}), text(num_tokens));
  check_min_size(call, name, output, 0, num_tokens, "num_tokens");
  return num_tokens;
}

// Sets the blocks, the strides and the vector size of the view of a cache [blocks, block_size, heads, head_size] or
// [blocks, block_size, entry]. `heads` are the heads of the cache; an entry is one head.
void set_flash_cache(const Call& call, PackedCache& view, std::string_view argument, const Tensor& cache,
                     const Heads& heads) {
  check_inner_stride(call, argument, cache);
  view.blocks = blocks_of(call, argument, cache);
  view.stride_block_bytes = stride_bytes(cache, 0);
  view.stride_row_bytes = stride_bytes(cache, 1);
  view.stride_head_bytes = cache.dim() == 4 ? stride_bytes(cache, 2) : 0;
  view.vector_size = Divisor::of(std::max<int64_t>(heads.head_size, 1));
}

// Sets the heads of `dst`, a tensor [tokens, heads, head_size] or [tokens, heads * head_size].
void set_output(const Call& call, HeadGather& gather, std::string_view argument, const Tensor& dst,
                const Heads& heads) {
  check_writable(call, argument, dst);
  gather.num_heads = heads.num_heads;
  gather.head_size = heads.head_size;
  gather.dst.head_bytes = wrapping_product(heads.head_size, dst.element_bytes());
  gather.dst.stride_token_bytes = stride_bytes(dst, 0);
  gather.dst.stride_head_bytes = dst.dim() == 3 ? stride_bytes(dst, 1) : gather.dst.head_bytes;
}

// Makes one head of heads that are contiguous on both sides and share a scale. The cache must not be packed: the
// kernels require that packed keys and packed values have equally many heads.
void merge_heads(HeadGather& gather) {
  PackedCache& cache = gather.cache;
  const int64_t cache_bytes = cache.codec.num_bytes(gather.head_size);
  const bool is_mergeable = gather.num_heads > 1 && gather.head_size > 0 && cache.scale_stride_head == 0;
  if (is_mergeable && cache.stride_head_bytes == cache_bytes && gather.dst.stride_head_bytes == gather.dst.head_bytes) {
    gather.head_size *= gather.num_heads;
    gather.dst.head_bytes *= gather.num_heads;
    cache.vector_size = Divisor::of(gather.head_size);
    gather.num_heads = 1;
  }
}

// Clears the strides of a single head, which mean nothing and must not lower the alignment.
void clear_single_head_strides(HeadGather& gather) {
  if (gather.num_heads == 1) gather.cache.stride_head_bytes = gather.dst.stride_head_bytes = 0;
}

// Checks src_cache and dst, and sets what they determine.
void set_entries(Call& call, GatherAndMaybeDequantCacheParams& p, const Tensor& src_cache, const Tensor& dst) {
  call.check_device("src_cache", src_cache);
  if (src_cache.dim() != 3 && src_cache.dim() != 4) call.fail("src_cache", "3 or 4 dimensions", shape_text(src_cache));
  call.check_device("dst", dst);
  const bool has_heads = src_cache.dim() == 4;
  if (dst.dim() != 2 && !(has_heads && dst.dim() == 3)) {
    call.fail("dst", has_heads ? "2 or 3 dimensions" : "2 dimensions", shape_text(dst));
  }
  p.dtype = float_dtype(call, "dst", dst);
  const Heads heads{has_heads ? src_cache.size(2) : 1, src_cache.size(src_cache.dim() - 1)};
  if (dst.dim() == 2) {
    const std::string_view of = has_heads ? "heads * head size of src_cache" : "entry size of src_cache";
    check_size(call, "dst", dst, 1, wrapping_product(heads.num_heads, heads.head_size), of);
  } else {
    check_size(call, "dst", dst, 1, heads.num_heads, "heads of src_cache");
    check_size(call, "dst", dst, 2, heads.head_size, "head size of src_cache");
  }
  set_flash_cache(call, p.entry.cache, "src_cache", src_cache, heads);
  set_output(call, p.entry, "dst", dst, heads);
}

}  // namespace

GatherAndMaybeDequantCacheParams make_gather_and_maybe_dequant_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    const OptionalTensor& token_to_seq, int64_t num_tokens, const FormatName& kv_cache_dtype, const Tensor& scale,
    const OptionalTensor& seq_starts) {
  GatherAndMaybeDequantCacheParams p{};
  PackedCache& cache = p.entry.cache;
  set_entries(call, p, src_cache, dst);
  p.sequences = make_sequences(call, cache.blocks, block_table, seq_starts);
  set_cu_seq_lens(call, p.sequences, cu_seq_lens);
  p.sequences.num_tokens = rows_to_write(call, "dst", dst, num_tokens);
  // The values of token_to_seq are not read, because cu_seq_lens determines them.
  if (token_to_seq.has_value()) {
    static_cast<void>(indices_of(call, "token_to_seq", *token_to_seq, 1));
    check_min_size(call, "token_to_seq", *token_to_seq, 0, p.sequences.num_tokens, "num_tokens");
  }
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kCache);
  cache.codec = cache_codec(call, format, "src_cache", src_cache, p.dtype, "dst");
  if (!cache.codec.is_float()) {
    if (src_cache.dim() == 4) cache.scale_stride_head = scale_stride(call, "scale", scale, p.entry.num_heads);
    cache.scale = src_cache.dim() == 4 ? reinterpret_cast<const float*>(data(call, "scale", scale))
                                       : scale_data(call, "scale", scale);
  }
  check_sequences(call, p.sequences, {.may_exceed_output = true});
  if (wrapping_product(p.entry.num_heads, p.entry.head_size) == 0) call.set_nothing_to_do();
  if (call.nothing_to_do()) return p;
  merge_heads(p.entry);
  clear_single_head_strides(p.entry);
  cache.data = data(call, "src_cache", src_cache);
  p.entry.dst.data = mutable_data(call, "dst", dst);
  return p;
}

namespace {

struct KvTensors {
  const Tensor &key_cache, &value_cache;
  const MutableTensor &key, &value;

  bool is_packed() const { return key_cache.dim() == 5; }
};

// An optional scale and its name.
struct KvScale {
  std::string_view name;
  const OptionalTensor& tensor;
};

void check_ranks(Call& call, const KvTensors& t) {
  call.check_device("key_cache", t.key_cache);
  if (t.key_cache.dim() != 4 && t.key_cache.dim() != 5) {
    call.fail("key_cache", "4 dimensions, or 5 (packed)", shape_text(t.key_cache));
  }
  call.check_device("value_cache", t.value_cache);
  if (t.value_cache.dim() != 4 && !(t.is_packed() && t.value_cache.dim() == 5)) {
    call.fail("value_cache", t.is_packed() ? "4 or 5 dimensions" : "4 dimensions like key_cache",
              shape_text(t.value_cache));
  }
  check_device_and_dim(call, "key", t.key, 3);
  check_device_and_dim(call, "value", t.value, 3);
}

// Checks a cache [blocks, block_size, heads, head_size] against its output.
void set_flash_heads(const Call& call, HeadGather& gather, std::string_view cache_name, const Tensor& cache,
                     std::string_view output_name, const Tensor& output) {
  const Heads heads{output.size(1), output.size(2)};
  check_size(call, cache_name, cache, 2, heads.num_heads, "heads of key");
  check_size(call, cache_name, cache, 3, heads.head_size, [&] { return join({"head size of ", output_name}); });
  set_flash_cache(call, gather.cache, cache_name, cache, heads);
}

void set_packed_heads(const Call& call, GatherKvCacheParams& p, const KvTensors& t) {
  const Heads heads{t.key.size(1), t.key.size(2)};
  check_size(call, "value", t.value, 2, heads.head_size, "head size of key");
  p.key.cache.blocks = p.value.cache.blocks = blocks_of(call, "key_cache", t.key_cache, 3);
  check_inner_stride(call, "key_cache", t.key_cache);
  check_inner_stride(call, "value_cache", t.value_cache);
  p.key.cache.stride_block_bytes = stride_bytes(t.key_cache, 0);
  p.value.cache.stride_block_bytes = stride_bytes(t.value_cache, 0);
  p.value.packs_slots = true;
  set_packed_keys(call, p.key.cache, t.key_cache, heads);
  set_packed_values(call, p.value.cache, t.value_cache, heads);
}

// Checks the caches and the outputs, and sets what their shapes and strides determine.
void set_caches(Call& call, GatherKvCacheParams& p, const KvTensors& t) {
  check_ranks(call, t);
  p.dtype = float_dtype(call, "key", t.key);
  check_dtype(call, "value", t.value, t.key.dtype(), "key");
  check_size(call, "value", t.value, 1, t.key.size(1), "heads of key");
  check_size(call, "value_cache", t.value_cache, 0, t.key_cache.size(0), "blocks of key_cache");
  if (t.is_packed()) {
    set_packed_heads(call, p, t);
  } else {
    set_flash_heads(call, p.key, "key_cache", t.key_cache, "key", t.key);
    set_flash_heads(call, p.value, "value_cache", t.value_cache, "value", t.value);
    check_size(call, "value_cache", t.value_cache, 1, t.key_cache.size(1), "block size of key_cache");
  }
  set_output(call, p.key, "key", t.key, {t.key.size(1), t.key.size(2)});
  set_output(call, p.value, "value", t.value, {t.value.size(1), t.value.size(2)});
}

void set_scale(Call& call, HeadGather& gather, const KvScale& scale) {
  if (!scale.tensor.has_value()) call.fail(scale.name, "a tensor for an fp8 format", "None");
  gather.cache.scale_stride_head = scale_stride(call, scale.name, *scale.tensor, gather.num_heads);
  gather.cache.scale = reinterpret_cast<const float*>(data(call, scale.name, *scale.tensor));
}

// Sets the codec, and for fp8 formats the scales.
void set_format(Call& call, GatherKvCacheParams& p, const KvTensors& t, const FormatName& kv_cache_dtype,
                const KvScale& k_scale, const KvScale& v_scale) {
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kCache);
  const Codec codec = cache_codec(call, format, "key_cache", t.key_cache, p.dtype, "key");
  check_dtype(call, "value_cache", t.value_cache, t.key_cache.dtype(), "key_cache");
  p.key.cache.codec = p.value.cache.codec = codec;
  if (codec.is_float()) return;
  set_scale(call, p.key, k_scale);
  set_scale(call, p.value, v_scale);
  if (k_scale.tensor->numel() != v_scale.tensor->numel()) {
    call.fail("v_scale", count_text(k_scale.tensor->numel(), "element") + " like k_scale", shape_text(*v_scale.tensor));
  }
}

// Fails if a global scale is given, which no format of this op has. To ignore it would return other numbers than the
// caller expects.
void check_no_global_scale(const Call& call, const FormatName& kv_cache_dtype, const KvScale& scale) {
  if (!scale.tensor.has_value()) return;
  call.fail(scale.name, join({"None (the format ", kv_cache_dtype.text(), " has no global scale)"}), "a tensor");
}

}  // namespace

GatherKvCacheParams make_gather_kv_cache_params(Call& call, const Tensor& key_cache, const Tensor& value_cache,
                                                const MutableTensor& key, const MutableTensor& value,
                                                const Tensor& block_table, const Tensor& cu_seq_lens,
                                                const FormatName& kv_cache_dtype, const OptionalTensor& k_scale,
                                                const OptionalTensor& v_scale, const OptionalTensor& seq_starts,
                                                int64_t num_tokens, const OptionalTensor& k_global_scale,
                                                const OptionalTensor& v_global_scale) {
  GatherKvCacheParams p{};
  const KvTensors tensors{key_cache, value_cache, key, value};
  set_caches(call, p, tensors);
  p.sequences = make_sequences(call, p.key.cache.blocks, block_table, seq_starts);
  set_cu_seq_lens(call, p.sequences, cu_seq_lens);
  p.sequences.num_tokens = rows_to_write(call, "key", key, num_tokens);
  check_min_size(call, "value", value, 0, p.sequences.num_tokens, num_tokens == -1 ? "rows of key" : "num_tokens");
  set_format(call, p, tensors, kv_cache_dtype, {"k_scale", k_scale}, {"v_scale", v_scale});
  check_no_global_scale(call, kv_cache_dtype, {"k_global_scale", k_global_scale});
  check_no_global_scale(call, kv_cache_dtype, {"v_global_scale", v_global_scale});
  check_sequences(call, p.sequences, {.may_exceed_output = true});
  if (p.key.num_heads == 0 || wrapping_sum(p.key.head_size, p.value.head_size) == 0) call.set_nothing_to_do();
  if (call.nothing_to_do()) return p;
  for (HeadGather* gather : {&p.key, &p.value}) {
    if (!tensors.is_packed()) merge_heads(*gather);
    clear_single_head_strides(*gather);
  }
  p.key.cache.data = data(call, "key_cache", key_cache);
  p.value.cache.data = data(call, "value_cache", value_cache);
  p.key.dst.data = mutable_data(call, "key", key);
  p.value.dst.data = mutable_data(call, "value", value);
  return p;
}

}  // namespace multikv
