#include <algorithm>
#include <functional>
#include <limits>

#include "frontend/check/formats.h"
#include "frontend/check/indices.h"
#include "frontend/check/shapes.h"
#include "frontend/ops/mla_write.h"
#include "params/mla_params.h"

namespace multikv {

namespace {

// Checks kv_c and k_pe, and sets what p takes from them. Their tokens are in dimension `token_dim`. The
// caller has set p.slots.
void set_sources(const Call& call, ConcatAndCacheMlaParams& p, const Tensor& kv_c, const Tensor& k_pe,
                 int64_t token_dim) {
  p.dtype = float_dtype(call, "kv_c", kv_c);
  check_dtype(call, "k_pe", k_pe, kv_c.dtype(), "kv_c");
  check_min_size(call, "kv_c", kv_c, token_dim, p.slots.num_tokens, "slots in slot_mapping");
  check_min_size(call, "k_pe", k_pe, token_dim, p.slots.num_tokens, "slots in slot_mapping");
  check_inner_stride(call, "kv_c", kv_c);
  check_inner_stride(call, "k_pe", k_pe);
  p.kv_c = token_rows(kv_c, token_dim);
  p.k_pe = token_rows(k_pe, token_dim);
  p.latent_size = kv_c.size(kv_c.dim() - 1);
  p.rope_size = k_pe.size(k_pe.dim() - 1);
}

bool is_empty(const ConcatAndCacheMlaParams& p) {
  return p.slots.num_tokens == 0 || wrapping_sum(p.latent_size, p.rope_size) == 0;
}

// Checks a cache of fp8_ds_mla entries. Its dtype may be uint8, an e4m3 dtype, which determines the element, or any
// dtype of 2 or 4 bytes.
void check_ds_mla(const Call& call, ConcatAndCacheMlaParams& p, const MlaWriteArguments& arguments,
                  const CacheFormat& format) {
  const MutableTensor& kv_cache = arguments.kv_cache;
  if (p.dtype == Float::kFloat32) call.fail("kv_c", "dtype float16 or bfloat16 for fp8_ds_mla", "float32");
  check_size(call, "kv_c", arguments.kv_c, 1, DsMlaEntry::kLatentSize, "latent size of fp8_ds_mla");
  if (p.rope_size != 0 && p.rope_size != DsMlaEntry::kRopeSize) {
    call.fail("k_pe", "size 64 or 0 (rope size of fp8_ds_mla) in the innermost dimension", shape_text(arguments.k_pe));
  }
  const int64_t element_bytes = kv_cache.element_bytes();
  const bool is_wide = element_bytes == 2 || element_bytes == 4;
  const Element element = is_wide ? fp8_element_of_bytes(call, format) : e4m3_element(call, "kv_cache", kv_cache);
  check_size(call, "kv_cache", kv_cache, 2, DsMlaEntry::kBytes / element_bytes,
             is_wide ? "656 bytes of an fp8_ds_mla entry" : "bytes of an fp8_ds_mla entry");
  p.cache.codec = with_element(format.codec, element);
}

// Fails if entries of one layer's cache in concat_and_cache_mla_grouped would overlap. The strides and the entry size
// are in elements. Any order of the dimensions is legal: blocks may also lie nearer to each other than the slots of a
// block. A stride between blocks is not checked if there is only one block, nor that between slots if a block has one
// slot. If the number of blocks is unknown (-1), only the first two blocks are checked against each other.
void check_no_overlap(const Call& call, int64_t entry_size, int64_t block_size, int64_t block_stride,
                      int64_t entry_stride, int64_t num_blocks) {
  const bool has_blocks = num_blocks < 0 || num_blocks > 1, has_slots = block_size > 1;
  const auto check = [&](std::string_view argument, int64_t stride, int64_t least, std::string_view of) {
    if (stride < least) call.fail(argument, join({"at least ", text(least), " (", of, ")"}), text(stride));
  };
  constexpr std::string_view kEntry = "elements of an entry; entries must not overlap";
  if (has_slots) check("entry_stride", entry_stride, entry_size, kEntry);
  if (!has_blocks) return;
  check("block_stride", block_stride, entry_size, kEntry);
  if (!has_slots) return;
  // steps + 1 entries follow each other at the smaller stride. They take steps * smaller + entry_size elements, and the
  // larger stride must be at least that. The division avoids an overflow of the product.
  const bool is_block_major = block_stride >= entry_stride;
  const auto [larger, smaller] = std::minmax(block_stride, entry_stride, std::greater<>());
  const int64_t steps = is_block_major ? block_size - 1 : std::max<int64_t>(num_blocks, 2) - 1;
  if ((larger - entry_size) / steps >= smaller) return;
  call.fail(is_block_major ? "block_stride" : "entry_stride",
            join({"at least ", text(steps), " * ", text(smaller), " + ", text(entry_size),
                  is_block_major ? " (elements of a block" : " (elements at one offset of all blocks",
                  "; entries must not overlap)"}),
            text(larger));
}

// The view of one layer's cache in concat_and_cache_mla_grouped. The strides are in elements. num_blocks is -1 if the
// number of blocks is unknown.
EntryCache grouped_cache(int64_t block_size, int64_t block_stride, int64_t entry_stride, int64_t num_blocks,
                         const Codec& codec) {
  EntryCache view{};
  const int64_t max_blocks = std::numeric_limits<int64_t>::max() / block_size;
  view.blocks = {num_blocks < 0 ? max_blocks : std::min(num_blocks, max_blocks), Divisor::of(block_size)};
  view.stride_block_bytes = wrapping_product(block_stride, codec.num_bytes(1));
  view.stride_slot_bytes = wrapping_product(entry_stride, codec.num_bytes(1));
  view.codec = codec;
  return view;
}

}  // namespace

ConcatAndCacheMlaParams make_mla_write(Call& call, const MlaWriteArguments& arguments) {
  const MutableTensor& kv_cache = arguments.kv_cache;
  ConcatAndCacheMlaParams p{};
  check_device_and_dim(call, "kv_cache", kv_cache, 3);
  p.slots = make_slots(call, arguments.slot_mapping);
  p.cache = entry_cache(call, "kv_cache", kv_cache);
  set_sources(call, p, arguments.kv_c, arguments.k_pe, 0);
  if (is_empty(p)) call.set_nothing_to_do();
  check_writable(call, "kv_cache", kv_cache);
  const CacheFormat& format = cache_format(call, arguments.kv_cache_dtype, FormatFamily::kMla);
  if (format.codec.scale_place == ScalePlace::kEntry) {
    check_ds_mla(call, p, arguments, format);
    return p;
  }
  check_size(call, "kv_cache", kv_cache, 2, wrapping_sum(p.latent_size, p.rope_size), "sizes of kv_c and k_pe");
  p.cache.codec = cache_codec(call, format, "kv_cache", kv_cache, p.dtype);
  if (!p.codec().is_float() && !arguments.skip_scale) {
    p.cache.scale = scale_data(call, arguments.scale_name, arguments.scale);
  }
  return p;
}

ConcatAndCacheMlaParams make_concat_and_cache_mla_params(Call& call, const Tensor& kv_c, const Tensor& k_pe,
                                                         const MutableTensor& kv_cache, const Tensor& slot_mapping,
                                                         const FormatName& kv_cache_dtype, const Tensor& scale,
                                                         bool skip_scale) {
  check_device_and_dim(call, "kv_c", kv_c, 2);
  check_device_and_dim(call, "k_pe", k_pe, 2);
  ConcatAndCacheMlaParams p =
      make_mla_write(call, {kv_c, k_pe, kv_cache, slot_mapping, kv_cache_dtype, "scale", scale, skip_scale});
  check_slots(call, p.slots, p.blocks());
  if (call.nothing_to_do()) return p;
  p.kv_c.data = data(call, "kv_c", kv_c);
  p.k_pe.data = data(call, "k_pe", k_pe);
  p.cache.data = mutable_data(call, "kv_cache", kv_cache);
  return p;
}

namespace {

// Checks kv_cache_dtype and kv_scales, and returns the codec. An fp8 format needs a scale for each layer; a
// floating-point format ignores kv_scales.
Codec check_grouped_format(Call& call, ConcatAndCacheMlaGroupedParams& p, const FormatName& kv_cache_dtype,
                           const OptionalTensor& kv_scales) {
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kCache);
  if (format.codec.is_float()) {
    check_float_format(call, format, p.first.dtype, "the input");
    return float_codec(p.first.dtype);
  }
  if (!kv_scales.has_value()) call.fail("kv_scales", "a tensor for an fp8 format", "None");
  check_device_and_dim(call, "kv_scales", *kv_scales, 1);
  check_dtype(call, "kv_scales", *kv_scales, Dtype::kFloat32);
  check_size(call, "kv_scales", *kv_scales, 0, p.num_layers, "layers of kv_c");
  check_inner_stride(call, "kv_scales", *kv_scales);
  p.kv_scales = reinterpret_cast<const float*>(data(call, "kv_scales", *kv_scales));
  return with_element(format.codec, fp8_element_of_bytes(call, format));
}

}  // namespace

ConcatAndCacheMlaGroupedParams make_concat_and_cache_mla_grouped_params(
    Call& call, const Tensor& kv_c, const Tensor& k_pe, const MutableTensor& kv_cache_ptrs, const Tensor& slot_mapping,
    int64_t block_size, int64_t block_stride, int64_t entry_stride, const OptionalTensor& kv_scales,
    const FormatName& kv_cache_dtype, int64_t num_blocks) {
  ConcatAndCacheMlaGroupedParams p{};
  check_device_and_dim(call, "kv_c", kv_c, 3);
  check_device_and_dim(call, "k_pe", k_pe, 3);
  p.num_layers = kv_c.size(0);
  check_size(call, "k_pe", k_pe, 0, p.num_layers, "layers of kv_c");
  p.first.slots = make_slots(call, slot_mapping, 2);
  check_size(call, "slot_mapping", slot_mapping, 0, p.num_layers, "layers of kv_c");
  set_sources(call, p.first, kv_c, k_pe, 1);
  p.kv_c_stride_layer_bytes = stride_bytes(kv_c, 0);
  p.k_pe_stride_layer_bytes = stride_bytes(k_pe, 0);

  check_device_and_dim(call, "kv_cache_ptrs", kv_cache_ptrs, 1);
  check_dtype(call, "kv_cache_ptrs", kv_cache_ptrs, Dtype::kInt64);
  check_size(call, "kv_cache_ptrs", kv_cache_ptrs, 0, p.num_layers, "layers of kv_c");
  check_inner_stride(call, "kv_cache_ptrs", kv_cache_ptrs);
  check_at_least(call, "block_size", block_size, 1);
  check_at_least(call, "block_stride", block_stride, 0);
  check_at_least(call, "entry_stride", entry_stride, 0);
  if (num_blocks < -1) call.fail("num_blocks", "at least 0, or -1 (unbounded)", text(num_blocks));
  check_no_overlap(call, wrapping_sum(p.first.latent_size, p.first.rope_size), block_size, block_stride, entry_stride,
                   num_blocks);
  const Codec codec = check_grouped_format(call, p, kv_cache_dtype, kv_scales);
  p.first.cache = grouped_cache(block_size, block_stride, entry_stride, num_blocks, codec);

  if (p.num_layers == 0 || is_empty(p.first)) call.set_nothing_to_do();
  if (num_blocks >= 0) check_slots_of_layers(call, p.first.slots, p.first.blocks(), p.num_layers);
  if (call.nothing_to_do()) return p;
  p.first.kv_c.data = data(call, "kv_c", kv_c);
  p.first.k_pe.data = data(call, "k_pe", k_pe);
  p.kv_cache_ptrs = reinterpret_cast<void* const*>(data(call, "kv_cache_ptrs", kv_cache_ptrs));
  return p;
}

ConcatMlaQParams make_concat_mla_q_params(Call& call, const Tensor& ql_nope, const Tensor& q_pe,
                                          const MutableTensor& q_out) {
  ConcatMlaQParams p{};
  check_device_and_dim(call, "ql_nope", ql_nope, 3);
  check_device_and_dim(call, "q_pe", q_pe, 3);
  check_device_and_dim(call, "q_out", q_out, 3);
  check_same_dtype(call, "q_pe", q_pe, ql_nope, "ql_nope");
  check_same_dtype(call, "q_out", q_out, ql_nope, "ql_nope");
  p.num_tokens = ql_nope.size(0);
  p.num_heads = ql_nope.size(1);
  check_size(call, "q_pe", q_pe, 0, p.num_tokens, "tokens of ql_nope");
  check_size(call, "q_pe", q_pe, 1, p.num_heads, "heads of ql_nope");
  check_size(call, "q_out", q_out, 0, p.num_tokens, "tokens of ql_nope");
  check_min_size(call, "q_out", q_out, 1, p.num_heads, "heads of ql_nope");
  check_size(call, "q_out", q_out, 2, wrapping_sum(ql_nope.size(2), q_pe.size(2)), "sizes of ql_nope and q_pe");
  check_inner_stride(call, "ql_nope", ql_nope);
  check_inner_stride(call, "q_pe", q_pe);
  check_writable(call, "q_out", q_out);
  p.ql_nope = token_heads(ql_nope);
  p.q_pe = token_heads(q_pe);
  p.q_out = token_heads(q_out);
  if (p.num_tokens == 0 || p.num_heads == 0 || q_out.size(2) == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.ql_nope.data = data(call, "ql_nope", ql_nope);
  p.q_pe.data = data(call, "q_pe", q_pe);
  p.q_out.data = mutable_data(call, "q_out", q_out);
  return p;
}

}  // namespace multikv
