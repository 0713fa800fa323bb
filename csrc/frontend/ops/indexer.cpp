#include "frontend/check/indices.h"
#include "frontend/ops/ops.h"

namespace multikv {

namespace {

// A cache uint8 [blocks, block_size, bytes per token], whose blocks are dense inside: they hold the codes of all their
// tokens, and then the scales.
void check_cache(Call& call, const Tensor& kv_cache) {
  call.check_device_and_dim("kv_cache", kv_cache, 3);
  call.check_dtype("kv_cache", kv_cache, Dtype::kUInt8, "");
  const bool is_dense = (kv_cache.size(2) <= 1 || kv_cache.stride(2) == 1) &&
                        (kv_cache.size(1) <= 1 || kv_cache.stride(1) == kv_cache.size(2));
  if (is_dense) return;
  call.fail("kv_cache", "blocks that are dense in memory (dimensions 1 and 2)", layout_text(kv_cache));
}

ScaleFormat scale_format(const FormatName& name) {
  switch (name.kind) {
    case FormatName::Kind::kPowerOfTwo: return ScaleFormat::kPowerOfTwo;
    case FormatName::Kind::kExponentBytes: return ScaleFormat::kExponentBytes;
    default: return ScaleFormat::kFloat32;
  }
}

}  // namespace

IndexerKQuantAndCacheParams make_indexer_k_quant_and_cache_params(Call& call, const Tensor& k,
                                                                  const MutableTensor& kv_cache,
                                                                  const Tensor& slot_mapping, int64_t quant_block_size,
                                                                  const FormatName& kv_cache_dtype) {
  IndexerKQuantAndCacheParams p{};
  call.check_device_and_dim("k", k, 2);
  p.dtype = call.float_dtype("k", k);
  check_cache(call, kv_cache);
  p.slots = make_slots(call, slot_mapping);
  set_blocks(call, p.slots, "kv_cache", kv_cache);
  call.check_min_size("k", k, 0, p.slots.num_tokens, "slots in slot_mapping");
  call.check_inner_stride("k", k);
  p.head_size = k.size(1);
  p.k_stride_token = k.stride(0);

  call.check_name(kv_cache_dtype, FormatNames::kIndexer);
  p.format = call.fp8_format_of_bytes(kv_cache_dtype);
  p.scale_format = scale_format(kv_cache_dtype);
  call.check_at_least("quant_block_size", quant_block_size, 1);
  p.quant_block_size = quant_block_size;
  if (p.head_size % quant_block_size != 0) {
    call.fail("quant_block_size", join({"a divisor of ", std::to_string(p.head_size), " (head size of k)"}),
              std::to_string(quant_block_size));
  }
  if (p.scale_format == ScaleFormat::kExponentBytes && (p.head_size != 128 || quant_block_size != 128)) {
    call.fail("quant_block_size", "128, and a head size of 128, for mxfp8",
              join({std::to_string(quant_block_size), ", and ", std::to_string(p.head_size)}));
  }
  const int64_t scale_bytes = kv_cache.size(2) - p.head_size, num_scales = p.head_size / quant_block_size;
  if (scale_bytes % 4 != 0 || scale_bytes / 4 != num_scales) {
    const std::string parts = join({std::to_string(p.head_size), " codes and ", std::to_string(num_scales)});
    call.fail("kv_cache", join({"the bytes of ", parts, " scales of 4 bytes in dimension 2"}),
              join({"shape ", shape_text(kv_cache)}));
  }
  // Expanded ones too.
  if (kv_cache.size(0) > 1 && kv_cache.stride(0) < kv_cache.size(1) * kv_cache.size(2)) {
    call.fail("kv_cache", "a tensor to write to, each element in a place of its own", layout_text(kv_cache));
  }
  p.kv_cache_stride_block_bytes = kv_cache.stride(0);
  if (p.head_size == 0) call.set_nothing_to_do();
  check_slots(call, p.slots);
  if (call.nothing_to_do()) return p;
  p.k = call.data("k", k);
  p.kv_cache = call.mutable_data("kv_cache", kv_cache);
  return p;
}

CpGatherIndexerKQuantCacheParams make_cp_gather_indexer_k_quant_cache_params(Call& call, const Tensor& kv_cache,
                                                                             const MutableTensor& dst_k,
                                                                             const MutableTensor& dst_scale,
                                                                             const Tensor& block_table,
                                                                             const Tensor& cu_seq_lens) {
  CpGatherIndexerKQuantCacheParams p{};
  check_cache(call, kv_cache);
  call.check_device_and_dim("dst_k", dst_k, 2);
  static_cast<void>(call.e4m3_format("dst_k", dst_k));  // either: codes are copied as they are
  call.check_device_and_dim("dst_scale", dst_scale, 2);
  if (dst_scale.dtype() != Dtype::kUInt8 && dst_scale.dtype() != Dtype::kFloat32) {
    call.fail("dst_scale", "dtype uint8 or float32", dtype_text(dst_scale));
  }
  call.check_size("dst_scale", dst_scale, 0, dst_k.size(0), "rows of dst_k");
  call.check_writable("dst_k", dst_k);
  call.check_writable("dst_scale", dst_scale);
  p.k_bytes = dst_k.size(1);
  p.scale_bytes = wrapping_product(dst_scale.size(1), dst_scale.element_bytes());
  const int64_t num_scales = p.scale_bytes / 4;
  if (p.scale_bytes % 4 != 0 || (p.k_bytes > 0 && (num_scales <= 0 || p.k_bytes % num_scales != 0))) {
    call.fail("dst_scale",
              join({"scales of 4 bytes, in a number that divides ", std::to_string(p.k_bytes), " (size of dst_k)"}),
              join({"shape ", shape_text(dst_scale), " of ", dtype_text(dst_scale)}));
  }
  call.check_size("kv_cache", kv_cache, 2, wrapping_sum(p.k_bytes, p.scale_bytes), "bytes per row of both outputs");
  p.kv_cache_stride_block_bytes = kv_cache.stride(0);
  p.dst_k_stride_token_bytes = dst_k.stride(0);
  p.dst_scale_stride_token_bytes = dst_scale.stride(0) * dst_scale.element_bytes();

  p.sequences = make_sequences(call, "kv_cache", kv_cache, block_table, std::nullopt);
  set_cu_seq_lens(call, p.sequences, cu_seq_lens);
  p.sequences.num_tokens = dst_k.size(0);
  if (kv_cache.size(2) == 0) call.set_nothing_to_do();
  check_sequences(call, p.sequences);
  if (call.nothing_to_do()) return p;
  p.kv_cache = call.data("kv_cache", kv_cache);
  p.dst_k = call.mutable_data("dst_k", dst_k);
  p.dst_scale = call.mutable_data("dst_scale", dst_scale);
  return p;
}

}  // namespace multikv
