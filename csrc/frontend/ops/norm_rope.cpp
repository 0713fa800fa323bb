#include "frontend/check/formats.h"
#include "frontend/check/indices.h"
#include "frontend/check/numbers.h"
#include "frontend/check/packed_caches.h"
#include "frontend/check/rope.h"
#include "frontend/check/shapes.h"
#include "frontend/check/strided.h"
#include "frontend/torch/word.h"
#include "params/norm_rope_params.h"

namespace multikv {

namespace {

// Checks the weight of a norm, [size], whose dtype must be float32 or that of the tensor `like`.
NormWeight make_weight(Call& call, std::string_view argument, const OptionalTensor& weight, int64_t size,
                       std::string_view of, const Tensor& like, std::string_view like_name) {
  if (!weight.has_value()) return {};
  check_device_and_dim(call, argument, *weight, 1);
  if (weight->dtype() != Dtype::kFloat32 && weight->dtype() != like.dtype()) {
    const std::string_view other = like.dtype() == Dtype::kFloat32 ? "" : ", or float32";
    call.fail(argument, join({"dtype ", dtype_text(like), " like ", like_name, other}), dtype_text(*weight));
  }
  check_size(call, argument, *weight, 0, size, of);
  check_inner_stride(call, argument, *weight);
  return {data(call, argument, *weight), float_dtype(call, argument, *weight)};
}

RmsNorm make_norm(double eps, double weight_bias) { return {rounded_to_float(eps), rounded_to_float(weight_bias)}; }

// -- rms_norm ---------------------------------------------------------------------------------------------------------

// Describes the last dimensions of both tensors as the rows of a StridedRows, in bytes.
StridedRows last_dimensions(const Tensor& input, const Tensor& out) {
  const int64_t last = input.dim() - 1, row_bytes = size_bytes(input, last);
  StridedDim dims[StridedRows::kMaxDims];
  for (int64_t d = 0; d < last; ++d) {
    dims[last - 1 - d] = {input.size(d), stride_bytes(input, d), stride_bytes(out, d)};
  }
  StridedRows rows = strided_rows(std::span(dims, last), row_bytes);
  if (rows.row_size == row_bytes) return rows;
  // strided_rows() has merged contiguous rows into one long row. They become the innermost dimension again.
  for (int d = rows.num_dims; d > 0; --d) {
    rows.size[d] = rows.size[d - 1];
    rows.src_stride[d] = rows.src_stride[d - 1];
    rows.dst_stride[d] = rows.dst_stride[d - 1];
  }
  ++rows.num_dims;
  rows.size[0] = rows.row_size / row_bytes;
  rows.src_stride[0] = rows.dst_stride[0] = row_bytes;
  rows.num_rows *= rows.size[0];
  rows.row_size = row_bytes;
  return rows;
}

// -- rotary_embedding -------------------------------------------------------------------------------------------------

// Checks heads that are rotated in place, [tokens, heads * head_size] or [tokens, heads, head_size]. Returns the number
// of heads.
int64_t set_rotated(Call& call, TokenHeads& heads, std::string_view argument, const MutableTensor& tensor,
                    const RotaryEmbeddingParams& p) {
  call.check_device(argument, tensor);
  if (tensor.dim() != 2 && tensor.dim() != 3) call.fail(argument, "2 or 3 dimensions", shape_text(tensor));
  check_size(call, argument, tensor, 0, p.num_tokens, "size of positions");
  if (tensor.dim() == 3) {
    check_size(call, argument, tensor, 2, p.head_size, "head_size");
  } else if (tensor.size(1) % p.head_size != 0) {
    call.fail(argument, join({"a multiple of ", text(p.head_size), " (head_size) in dimension 1"}), shape_text(tensor));
  }
  check_writable(call, argument, tensor);
  heads.head_bytes = wrapping_product(p.head_size, tensor.element_bytes());
  heads.stride_token_bytes = stride_bytes(tensor, 0);
  heads.stride_head_bytes = tensor.dim() == 3 ? stride_bytes(tensor, 1) : heads.head_bytes;
  return tensor.dim() == 3 ? tensor.size(1) : tensor.size(1) / p.head_size;
}

void set_table(Call& call, Rope& rope, const Tensor& cos_sin_cache, const RotatedPart& part, const Tensor& like,
               std::string_view like_name) {
  rope.table_dtype = check_table(call, cos_sin_cache, part);
  check_table_dtype(call, cos_sin_cache, like, like_name);
  rope.is_on = true;
  rope.offset = part.offset;
  rope.size = cos_sin_cache.size(1);
  rope.num_positions = cos_sin_cache.size(0);
  rope.cos_sin_cache = token_rows(cos_sin_cache);
}

// -- qk_norm_rope_cache -----------------------------------------------------------------------------------------------

// The number of columns of qkv; the largest int64_t if it is larger.
int64_t num_columns(int64_t num_heads, int64_t num_kv_heads, int64_t head_size) {
  int64_t heads = 0, columns = 0;
  const bool overflows = __builtin_mul_overflow(num_kv_heads, 2, &heads) ||
                         __builtin_add_overflow(heads, num_heads, &heads) ||
                         __builtin_mul_overflow(heads, head_size, &columns);
  return overflows ? INT64_MAX : columns;
}

void set_sizes(const Call& call, QkNormRopeCacheParams& p, int64_t num_heads, int64_t num_kv_heads, int64_t head_size) {
  check_at_least(call, "num_heads", num_heads, 0);
  check_at_least(call, "num_kv_heads", num_kv_heads, 1);
  check_at_least(call, "head_size", head_size, 1);
  p.query.num_heads = num_heads;
  p.key.num_heads = num_kv_heads;
  p.head_size = head_size;
}

// Checks qkv and slot_mapping, and sets the three sources but for their addresses.
void set_sources(Call& call, QkNormRopeCacheParams& p, const Tensor& qkv, const Tensor& slot_mapping) {
  check_device_and_dim(call, "qkv", qkv, 2);
  p.dtype = float_dtype(call, "qkv", qkv);
  p.slots = make_slots(call, slot_mapping);
  check_min_size(call, "qkv", qkv, 0, p.slots.num_tokens, "slots in slot_mapping");
  check_min_size(call, "qkv", qkv, 1, num_columns(p.query.num_heads, p.key.num_heads, p.head_size),
                 "(num_heads + 2 * num_kv_heads) * head_size");
  check_inner_stride(call, "qkv", qkv);
  const int64_t head_bytes = p.head_size * qkv.element_bytes();
  p.query.source = p.key.source = p.value = {nullptr, stride_bytes(qkv, 0), head_bytes, head_bytes};
}

// Checks q_out or k_out, [tokens, heads, head_size], whose dtype the caller has checked.
void set_output(const Call& call, const QkNormRopeCacheParams& p, NormRopeHeads& heads, std::string_view argument,
                const Tensor& out, std::string_view num_heads_of) {
  check_min_size(call, argument, out, 0, p.slots.num_tokens, "slots in slot_mapping");
  check_size(call, argument, out, 1, heads.num_heads, num_heads_of);
  check_size(call, argument, out, 2, p.head_size, "head_size");
  check_writable(call, argument, out);
  heads.out = token_heads(out);
}

void set_query_output(Call& call, QkNormRopeCacheParams& p, const Tensor& q_out, const Tensor& qkv,
                      const OptionalTensor& q_scale) {
  check_device_and_dim(call, "q_out", q_out, 3);
  p.query_element = element_of(p.dtype);
  for (const Element element : kFp8Elements) {
    if (q_out.dtype() == dtype_of(element)) p.query_element = element;
  }
  if (!p.quantises_queries() && q_out.dtype() != qkv.dtype()) {
    call.fail("q_out", join({"dtype ", dtype_text(qkv), " like qkv, or a float8 dtype"}), dtype_text(q_out));
  }
  set_output(call, p, p.query, "q_out", q_out, "num_heads");
  if (!p.quantises_queries()) return;
  if (!q_scale.has_value()) call.fail("q_scale", join({"a tensor (q_out is ", dtype_text(q_out), ")"}), "None");
  p.query_scale = scale_data(call, "q_scale", *q_scale);
}

struct KvCaches {
  const MutableTensor &key, &value;

  bool is_packed() const { return key.dim() == 5; }
};

void check_cache_dims(Call& call, const KvCaches& caches) {
  call.check_device("key_cache", caches.key);
  if (caches.key.dim() != 4 && !caches.is_packed()) {
    call.fail("key_cache", "4 dimensions, or 5 (packed)", shape_text(caches.key));
  }
  call.check_device("value_cache", caches.value);
  if (caches.value.dim() != 4 && !(caches.is_packed() && caches.value.dim() == 5)) {
    call.fail("value_cache", caches.is_packed() ? "4 or 5 dimensions" : "4 dimensions like key_cache",
              shape_text(caches.value));
  }
}

// Checks a cache [blocks, block_size, heads, head_size], and sets its strides within a block.
void set_flash_cache(const Call& call, HeadCache& view, std::string_view argument, const Tensor& cache,
                     const Heads& heads) {
  check_size(call, argument, cache, 2, heads.num_heads, heads.num_heads_of);
  check_size(call, argument, cache, 3, heads.head_size, heads.head_size_of);
  view.stride_row_bytes = stride_bytes(cache, 1);
  view.stride_head_bytes = stride_bytes(cache, 2);
  view.vector_size = Divisor::of(heads.head_size);
}

// Checks both caches, and sets their views but for codecs, scales and addresses.
void set_caches(Call& call, QkNormRopeCacheParams& p, const KvCaches& caches) {
  check_cache_dims(call, caches);
  check_writable(call, "key_cache", caches.key);
  check_writable(call, "value_cache", caches.value);
  check_size(call, "value_cache", caches.value, 0, caches.key.size(0), "blocks of key_cache");
  p.is_packed = p.value_cache.packs_slots = caches.is_packed();
  const Blocks blocks = blocks_of(call, "key_cache", caches.key, p.is_packed ? 3 : 1);
  p.key_cache.blocks = p.value_cache.blocks = blocks;
  p.key_cache.stride_block_bytes = stride_bytes(caches.key, 0);
  p.value_cache.stride_block_bytes = stride_bytes(caches.value, 0);
  const Heads heads{p.key.num_heads, p.head_size, "num_kv_heads", "head_size"};
  if (p.is_packed) {
    set_packed_keys(call, p.key_cache, caches.key, heads);
    set_packed_values(call, p.value_cache, caches.value, heads);
  } else {
    set_flash_cache(call, p.key_cache, "key_cache", caches.key, heads);
    set_flash_cache(call, p.value_cache, "value_cache", caches.value, heads);
    check_size(call, "value_cache", caches.value, 1, caches.key.size(1), "block size of key_cache");
  }
}

void set_scale(Call& call, HeadCache& cache, std::string_view argument, const OptionalTensor& scale, int64_t num_heads,
               std::string_view format) {
  if (!scale.has_value()) call.fail(argument, join({"a tensor (kv_cache_dtype is ", format, ")"}), "None");
  cache.scale_stride_head = scale_stride(call, argument, *scale, num_heads);
  cache.scale = reinterpret_cast<const float*>(data(call, argument, *scale));
}

void set_format(Call& call, QkNormRopeCacheParams& p, const KvCaches& caches, const FormatName& kv_cache_dtype,
                const OptionalTensor& k_scale, const OptionalTensor& v_scale) {
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kCache);
  const Codec codec = cache_codec(call, format, "key_cache", caches.key, p.dtype, "qkv");
  check_dtype(call, "value_cache", caches.value, caches.key.dtype(), "key_cache");
  p.key_cache.codec = p.value_cache.codec = codec;
  if (codec.is_float()) return;
  set_scale(call, p.key_cache, "k_scale", k_scale, p.key.num_heads, format.name);
  set_scale(call, p.value_cache, "v_scale", v_scale, p.key.num_heads, format.name);
  if (k_scale->numel() != v_scale->numel()) {
    call.fail("v_scale", count_text(k_scale->numel(), "element") + " like k_scale", shape_text(*v_scale));
  }
}

// Scales per token and head belong to formats that do not exist yet.
void check_no_scales(const Call& call, std::string_view argument, const OptionalMutableTensor& scales) {
  if (!scales.has_value()) return;
  call.fail(argument, "None (only formats with a scale per token and head need it)", "a tensor");
}

NormOrder norm_order_of(const Call& call, const Word& word) {
  if (word.text == "head") return NormOrder::kHead;
  if (word.text == "after_rope") return NormOrder::kAfterRope;
  if (word.text == "all_heads") return NormOrder::kAllHeads;
  call.fail("norm_order", "one of head, after_rope, all_heads", join({"'", word.text, "'"}));
}

struct NormArguments {
  const OptionalTensor &q_weight, &k_weight;
  double eps, weight_bias;
  const Word& order;
};

void set_norm(Call& call, QkNormRopeCacheParams& p, const NormArguments& norm, const Tensor& qkv) {
  const NormOrder order = norm_order_of(call, norm.order);
  p.norm = make_norm(norm.eps, norm.weight_bias);
  const bool is_on = norm.eps >= 0;
  p.order = is_on ? order : NormOrder::kNone;
  const auto set = [&](NormRopeHeads& heads, std::string_view argument, const OptionalTensor& weight,
                       std::string_view all_heads) {
    if (!is_on && weight.has_value()) {
      call.fail("eps", join({"at least 0 (", argument, " is given)"}), number_text(norm.eps));
    }
    const bool is_one_row = order == NormOrder::kAllHeads;
    heads.weight = make_weight(call, argument, weight, is_one_row ? heads.num_heads * p.head_size : p.head_size,
                               is_one_row ? all_heads : "head_size", qkv, "qkv");
  };
  set(p.query, "q_weight", norm.q_weight, "num_heads * head_size");
  set(p.key, "k_weight", norm.k_weight, "num_kv_heads * head_size");
}

struct RopeArguments {
  const Tensor& positions;
  const OptionalTensor& cos_sin_cache;
  int64_t offset;
  const OptionalIntList& section;
  bool is_interleaved;
};

void set_section(const Call& call, Rope& rope, const IntList& section, bool is_interleaved) {
  if (section.size() != 3) call.fail("mrope_section", "3 numbers", count_text(section.size(), "number"));
  for (const int64_t size : section.items) check_at_least(call, "mrope_section", size, 0);
  rope.section = {true, is_interleaved, section[0], section[1], section[2]};
  if (!rope.is_on) return;
  const int64_t sum = wrapping_sum(wrapping_sum(section[0], section[1]), section[2]);
  const bool is_small = section[0] <= rope.size && section[1] <= rope.size && section[2] <= rope.size;
  if (is_small && sum == rope.num_pairs()) return;
  call.fail("mrope_section", join({"a sum of ", text(rope.num_pairs()), " (half the size of cos_sin_cache)"}),
            join({"[", text(section[0]), ", ", text(section[1]), ", ", text(section[2]), "]"}));
}

void set_rope(Call& call, QkNormRopeCacheParams& p, const RopeArguments& arguments, const Tensor& qkv) {
  const int64_t num_tokens = p.slots.num_tokens;
  const bool has_section = arguments.section.has_value();
  p.rope.positions = indices_of(call, "positions", arguments.positions, has_section ? 2 : 1);
  if (has_section) check_size(call, "positions", arguments.positions, 0, 3, "numbers in mrope_section");
  check_min_size(call, "positions", arguments.positions, has_section ? 1 : 0, num_tokens, "slots in slot_mapping");
  check_at_least(call, "rotary_offset", arguments.offset, 0);
  if (arguments.cos_sin_cache.has_value()) {
    set_table(call, p.rope, *arguments.cos_sin_cache, {arguments.offset, p.head_size, "head_size"}, qkv, "qkv");
  }
  if (has_section) set_section(call, p.rope, *arguments.section, arguments.is_interleaved);
}

void check_values(Call& call, const QkNormRopeCacheParams& p) {
  check_slots(call, p.slots, p.blocks());
  if (!p.rope.is_on) return;
  const auto check = p.rope.section.is_given ? check_positions_of_rows : check_positions;
  check(call, p.rope.positions, p.slots.num_tokens, p.rope.num_positions);
}

// Sets the addresses of the three parts of qkv. q_out may be a part of qkv. So the caller has called mutable_data() for
// q_out first, because it may move a copy-on-write tensor.
void set_source_addresses(const Call& call, QkNormRopeCacheParams& p, const Tensor& qkv) {
  p.query.source.data = data(call, "qkv", qkv);
  p.key.source.data = p.query.source.head(0, p.query.num_heads);
  p.value.data = p.key.source.head(0, p.key.num_heads);
}

}  // namespace

RmsNormParams make_rms_norm_params(Call& call, const MutableTensor& out, const Tensor& input,
                                   const OptionalTensor& weight, double eps, double weight_bias) {
  RmsNormParams p{};
  constexpr int64_t kMaxDims = StridedRows::kMaxDims + 1;
  call.check_device("input", input);
  p.dtype = float_dtype(call, "input", input);
  if (input.dim() == 0 || input.dim() > kMaxDims) {
    call.fail("input", join({"from 1 to ", text(kMaxDims), " dimensions"}), shape_text(input));
  }
  check_inner_stride(call, "input", input);
  check_device_and_dim(call, "out", out, input.dim());
  check_dtype(call, "out", out, input.dtype(), "input");
  for (int64_t d = 0; d < input.dim(); ++d) check_size(call, "out", out, d, input.size(d), "size of input");
  check_writable(call, "out", out);
  p.row_elements = input.size(input.dim() - 1);
  p.weight = make_weight(call, "weight", weight, p.row_elements, "size of input", input, "input");
  if (!(eps >= 0)) call.fail("eps", "at least 0", number_text(eps));
  p.norm = make_norm(eps, weight_bias);
  if (input.numel() == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.rows = last_dimensions(input, out);
  p.out = mutable_data(call, "out", out);
  p.input = data(call, "input", input);
  return p;
}

RotaryEmbeddingParams make_rotary_embedding_params(Call& call, const Tensor& positions, const MutableTensor& query,
                                                   const OptionalMutableTensor& key, int64_t head_size,
                                                   const Tensor& cos_sin_cache, bool is_neox) {
  RotaryEmbeddingParams p{};
  call.check_device("query", query);
  p.dtype = float_dtype(call, "query", query);
  check_at_least(call, "head_size", head_size, 1);
  p.head_size = head_size;
  p.rope.positions = indices_of(call, "positions", positions, 1);
  p.num_tokens = positions.size(0);
  p.num_query_heads = set_rotated(call, p.query, "query", query, p);
  if (key.has_value()) {
    p.num_key_heads = set_rotated(call, p.key, "key", *key, p);
    check_dtype(call, "key", *key, query.dtype(), "query");
  }
  set_table(call, p.rope, cos_sin_cache, {0, head_size, "head_size"}, query, "query");
  p.rope.is_neox = is_neox;
  if (p.num_tokens == 0 || p.num_query_heads + p.num_key_heads == 0 || p.rope.size == 0) call.set_nothing_to_do();
  check_positions(call, p.rope.positions, p.num_tokens, p.rope.num_positions);
  if (call.nothing_to_do()) return p;
  p.rope.cos_sin_cache.data = data(call, "cos_sin_cache", cos_sin_cache);
  p.query.data = mutable_data(call, "query", query);
  if (key.has_value()) p.key.data = mutable_data(call, "key", *key);
  return p;
}

QkNormRopeCacheParams make_qk_norm_rope_cache_params(
    Call& call, const Tensor& qkv, const MutableTensor& q_out, const OptionalMutableTensor& k_out,
    const MutableTensor& key_cache, const MutableTensor& value_cache, const Tensor& slot_mapping,
    const Tensor& positions, const OptionalTensor& cos_sin_cache, int64_t num_heads, int64_t num_kv_heads,
    int64_t head_size, bool is_neox, const FormatName& kv_cache_dtype, const OptionalTensor& k_scale,
    const OptionalTensor& v_scale, const OptionalTensor& q_scale, const OptionalTensor& q_weight,
    const OptionalTensor& k_weight, double eps, double weight_bias, const Word& norm_order, int64_t rotary_offset,
    const OptionalIntList& mrope_section, bool mrope_interleaved, const OptionalMutableTensor& k_scales,
    const OptionalMutableTensor& v_scales) {
  QkNormRopeCacheParams p{};
  const KvCaches caches{key_cache, value_cache};
  call.check_device("qkv", qkv);
  set_sizes(call, p, num_heads, num_kv_heads, head_size);
  set_sources(call, p, qkv, slot_mapping);
  set_query_output(call, p, q_out, qkv, q_scale);
  if (k_out.has_value()) {
    check_device_and_dim(call, "k_out", *k_out, 3);
    check_dtype(call, "k_out", *k_out, qkv.dtype(), "qkv");
    set_output(call, p, p.key, "k_out", *k_out, "num_kv_heads");
  }
  set_caches(call, p, caches);
  set_format(call, p, caches, kv_cache_dtype, k_scale, v_scale);
  check_no_scales(call, "k_scales", k_scales);
  check_no_scales(call, "v_scales", v_scales);
  set_rope(call, p, {positions, cos_sin_cache, rotary_offset, mrope_section, mrope_interleaved}, qkv);
  p.rope.is_neox = is_neox;
  set_norm(call, p, {q_weight, k_weight, eps, weight_bias, norm_order}, qkv);
  check_values(call, p);
  if (call.nothing_to_do()) return p;
  p.query.out.data = mutable_data(call, "q_out", q_out);
  if (k_out.has_value()) p.key.out.data = mutable_data(call, "k_out", *k_out);
  p.key_cache.data = mutable_data(call, "key_cache", key_cache);
  p.value_cache.data = mutable_data(call, "value_cache", value_cache);
  if (p.rope.is_on) p.rope.cos_sin_cache.data = data(call, "cos_sin_cache", *cos_sin_cache);
  set_source_addresses(call, p, qkv);
  return p;
}

}  // namespace multikv
