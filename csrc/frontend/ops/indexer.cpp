#include "frontend/check/formats.h"
#include "frontend/check/sequence_bounds.h"
#include "frontend/check/shapes.h"
#include "params/indexer_params.h"

namespace multikv {

namespace {

constexpr int64_t kScaleBytes = 4;

// Checks a uint8 cache [blocks, block_size, bytes per token]. Its blocks must be contiguous, because a block holds the
// codes of all its slots, and after them their scales (IndexerCache).
void check_cache(Call& call, const Tensor& kv_cache) {
  check_device_and_dim(call, "kv_cache", kv_cache, 3);
  check_dtype(call, "kv_cache", kv_cache, Dtype::kUInt8);
  const bool are_contiguous = (kv_cache.size(2) <= 1 || kv_cache.stride(2) == 1) &&
                              (kv_cache.size(1) <= 1 || kv_cache.stride(1) == kv_cache.size(2));
  if (!are_contiguous) call.fail("kv_cache", "contiguous blocks (dimensions 1 and 2)", layout_text(kv_cache));
}

void check_tiles(const Call& call, int64_t head_size, int64_t quant_block_size, const Codec& codec) {
  check_at_least(call, "quant_block_size", quant_block_size, 1);
  if (head_size % quant_block_size != 0) {
    call.fail("quant_block_size", join({"a divisor of ", text(head_size), " (head size of k)"}),
              text(quant_block_size));
  }
  if (codec.scale_type == ScaleType::kExponentBytes && (head_size != 128 || quant_block_size != 128)) {
    call.fail("quant_block_size", "128 with head size 128 (mxfp8)",
              join({text(quant_block_size), " with head size ", text(head_size)}));
  }
}

// Checks that dimension 2 of the cache has the size of a token's codes and scales, and that blocks do not overlap. The
// latter also rejects a stride of 0 between blocks.
void check_bytes_per_token(const Call& call, const Tensor& kv_cache, int64_t head_size, int64_t num_scales) {
  const int64_t scale_bytes = kv_cache.size(2) - head_size;
  if (scale_bytes % kScaleBytes != 0 || scale_bytes / kScaleBytes != num_scales) {
    const int64_t size = wrapping_sum(head_size, wrapping_product(num_scales, kScaleBytes));
    const std::string codes = count_text(head_size, "code"), scales = count_text(num_scales, "scale");
    call.fail("kv_cache", join({"size ", text(size), " (", codes, " and ", scales, " of 4 bytes) in dimension 2"}),
              shape_text(kv_cache));
  }
  if (kv_cache.size(0) > 1 && kv_cache.stride(0) < kv_cache.size(1) * kv_cache.size(2)) {
    call.fail("kv_cache", kWithoutOverlaps, layout_text(kv_cache));
  }
}

// Checks the outputs of the gather: dst_k [tokens, code bytes], and dst_scale [tokens, scales] of float32, or the same
// scales as uint8 [tokens, 4 * scales].
void set_outputs(Call& call, CpGatherIndexerKQuantCacheParams& p, const Tensor& dst_k, const Tensor& dst_scale) {
  check_device_and_dim(call, "dst_k", dst_k, 2);
  static_cast<void>(e4m3_element(call, "dst_k", dst_k));  // codes are copied, so dst_k may have any e4m3 dtype
  check_device_and_dim(call, "dst_scale", dst_scale, 2);
  if (dst_scale.dtype() != Dtype::kUInt8 && dst_scale.dtype() != Dtype::kFloat32) {
    call.fail("dst_scale", "dtype uint8 or float32", dtype_text(dst_scale));
  }
  check_size(call, "dst_scale", dst_scale, 0, dst_k.size(0), "rows of dst_k");
  check_writable(call, "dst_k", dst_k);
  check_writable(call, "dst_scale", dst_scale);
  p.dst_k = token_rows(dst_k);
  p.dst_scale = token_rows(dst_scale);
  const int64_t k_bytes = p.dst_k.row_bytes, scale_bytes = p.dst_scale.row_bytes;
  const int64_t num_scales = scale_bytes / kScaleBytes;
  if (scale_bytes % kScaleBytes != 0 || (k_bytes > 0 && (num_scales <= 0 || k_bytes % num_scales != 0))) {
    call.fail("dst_scale",
              join({"4-byte scales, their number a divisor of ", text(k_bytes), " (bytes per row of dst_k)"}),
              join({shape_text(dst_scale), " of ", dtype_text(dst_scale)}));
  }
}

IndexerCache indexer_cache(const Tensor& kv_cache, const Blocks& blocks, int64_t code_bytes, int64_t scale_bytes) {
  IndexerCache view{};
  view.blocks = blocks;
  view.stride_block_bytes = kv_cache.stride(0);
  view.code_bytes = code_bytes;
  view.scale_bytes = scale_bytes;
  return view;
}

}  // namespace

IndexerKQuantAndCacheParams make_indexer_k_quant_and_cache_params(Call& call, const Tensor& k,
                                                                  const MutableTensor& kv_cache,
                                                                  const Tensor& slot_mapping, int64_t quant_block_size,
                                                                  const FormatName& kv_cache_dtype) {
  IndexerKQuantAndCacheParams p{};
  check_device_and_dim(call, "k", k, 2);
  p.dtype = float_dtype(call, "k", k);
  check_cache(call, kv_cache);
  p.slots = make_slots(call, slot_mapping);
  const Blocks blocks = blocks_of(call, "kv_cache", kv_cache);
  check_min_size(call, "k", k, 0, p.slots.num_tokens, "slots in slot_mapping");
  check_inner_stride(call, "k", k);
  p.k = token_rows(k);
  p.head_size = k.size(1);
  p.quant_block_size = quant_block_size;

  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kIndexer);
  const Codec codec = with_element(format.codec, fp8_element_of_bytes(call, format));
  check_tiles(call, p.head_size, quant_block_size, codec);
  const int64_t num_scales = p.head_size / quant_block_size;
  check_bytes_per_token(call, kv_cache, p.head_size, num_scales);
  p.cache = indexer_cache(kv_cache, blocks, p.head_size, wrapping_product(num_scales, kScaleBytes));
  p.cache.codec = codec;
  if (p.head_size == 0) call.set_nothing_to_do();
  check_slots(call, p.slots, p.blocks());
  if (call.nothing_to_do()) return p;
  p.k.data = data(call, "k", k);
  p.cache.data = mutable_data(call, "kv_cache", kv_cache);
  return p;
}

CpGatherIndexerKQuantCacheParams make_cp_gather_indexer_k_quant_cache_params(Call& call, const Tensor& kv_cache,
                                                                             const MutableTensor& dst_k,
                                                                             const MutableTensor& dst_scale,
                                                                             const Tensor& block_table,
                                                                             const Tensor& cu_seq_lens) {
  CpGatherIndexerKQuantCacheParams p{};
  check_cache(call, kv_cache);
  set_outputs(call, p, dst_k, dst_scale);
  const int64_t k_bytes = p.dst_k.row_bytes, scale_bytes = p.dst_scale.row_bytes;
  check_size(call, "kv_cache", kv_cache, 2, wrapping_sum(k_bytes, scale_bytes), "bytes per row of both outputs");
  p.cache = indexer_cache(kv_cache, blocks_of(call, "kv_cache", kv_cache), k_bytes, scale_bytes);
  p.sequences = make_sequences(call, p.cache.blocks, block_table, std::nullopt);
  set_cu_seq_lens(call, p.sequences, cu_seq_lens);
  p.sequences.num_tokens = dst_k.size(0);
  if (kv_cache.size(2) == 0) call.set_nothing_to_do();
  check_sequences(call, p.sequences);
  if (call.nothing_to_do()) return p;
  p.cache.data = data(call, "kv_cache", kv_cache);
  p.dst_k.data = mutable_data(call, "dst_k", dst_k);
  p.dst_scale.data = mutable_data(call, "dst_scale", dst_scale);
  return p;
}

}  // namespace multikv
