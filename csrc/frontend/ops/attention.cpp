#include <algorithm>
#include <tuple>

#include "frontend/check/attention_sequences.h"
#include "frontend/check/formats.h"
#include "frontend/check/packed_caches.h"
#include "frontend/check/shapes.h"
#include "params/attention_params.h"

namespace multikv {

namespace {

// The tensors, the format and the sequences of paged_attention. The arguments of paged_attention_v1 and
// paged_attention_v2 are converted to them.
struct AttentionArguments {
  const Tensor &query, &key_cache, &value_cache;
  const MutableTensor& out;
  const OptionalMutableTensor& lse;
  const FormatName& kv_cache_dtype;
  const Tensor *k_scale, *v_scale;  // nullptr: None
  const OptionalTensor &alibi_slopes, &sinks, &query_mask;
  AttentionSequenceArguments sequences;
};

// Checks query and out, and sets what p takes from them.
void set_query(Call& call, PagedAttentionParams& p, const AttentionArguments& arguments) {
  const auto& [query, out] = std::tie(arguments.query, arguments.out);
  check_device_and_dim(call, "query", query, 3);
  p.dtype = float_dtype(call, "query", query);
  check_inner_stride(call, "query", query);
  p.num_query_heads = query.size(1);
  p.head_size = query.size(2);
  if (p.head_size == 0) call.fail("query", "a head size of at least 1", shape_text(query));
  check_device_and_dim(call, "out", out, 3);
  check_dtype(call, "out", out, query.dtype(), "query");
  check_size(call, "out", out, 1, p.num_query_heads, "heads of query");
  check_writable(call, "out", out);
  p.query = token_heads(query);
  p.out = token_heads(out);
}

// Checks caches [blocks, block_size, heads, head_size], and sets their strides.
void set_flash_caches(const Call& call, PagedAttentionParams& p, const Tensor& key_cache, const Tensor& value_cache) {
  check_size(call, "key_cache", key_cache, 3, p.head_size, "head size of query");
  p.num_kv_heads = key_cache.size(2);
  check_size(call, "value_cache", value_cache, 1, key_cache.size(1), "block size of key_cache");
  check_size(call, "value_cache", value_cache, 2, p.num_kv_heads, "heads of key_cache");
  p.value_size = value_cache.size(3);
  if (p.value_size == 0) call.fail("value_cache", "a head size of at least 1", shape_text(value_cache));
  p.key.stride_slot_bytes = stride_bytes(key_cache, 1);
  p.key.stride_head_bytes = stride_bytes(key_cache, 2);
  p.value.stride_slot_bytes = stride_bytes(value_cache, 1);
  p.value.stride_head_bytes = stride_bytes(value_cache, 2);
}

// Checks packed caches, and sets their strides. The caller has set the blocks of the views.
void set_packed_caches(const Call& call, PagedAttentionParams& p, const Tensor& key_cache, const Tensor& value_cache) {
  p.num_kv_heads = key_cache.size(1);
  p.value_size = p.head_size;
  const Heads heads{p.num_kv_heads, p.head_size, "heads of key_cache", "head size of query"};
  set_packed_keys(call, p.packed_key, key_cache, heads);
  set_packed_values(call, p.packed_value, value_cache, heads);
}

// Checks a scale of an fp8 cache, and sets it.
void set_scale(Call& call, CacheView& view, std::string_view argument, const Tensor* scale, int64_t num_heads) {
  if (scale == nullptr) call.fail(argument, "a tensor for an fp8 format", "None");
  view.scale_stride_head = scale_stride(call, argument, *scale, num_heads);
  view.scale = reinterpret_cast<const float*>(data(call, argument, *scale));
}

// Checks the caches, their format and their scales.
void set_caches(Call& call, PagedAttentionParams& p, const AttentionArguments& arguments) {
  const auto& [key_cache, value_cache] = std::tie(arguments.key_cache, arguments.value_cache);
  call.check_device("key_cache", key_cache);
  if (key_cache.dim() != 4 && key_cache.dim() != 5) {
    call.fail("key_cache", "4 dimensions, or 5 (packed)", shape_text(key_cache));
  }
  p.is_packed = key_cache.dim() == 5;
  call.check_device("value_cache", value_cache);
  if (value_cache.dim() != 4 && !(p.is_packed && value_cache.dim() == 5)) {
    call.fail("value_cache", p.is_packed ? "4 dimensions, or 5 (interleaved)" : "4 dimensions",
              shape_text(value_cache));
  }
  check_inner_stride(call, "key_cache", key_cache);
  check_inner_stride(call, "value_cache", value_cache);
  check_size(call, "value_cache", value_cache, 0, key_cache.size(0), "blocks of key_cache");
  CacheView& key = p.is_packed ? static_cast<CacheView&>(p.packed_key) : p.key;
  CacheView& value = p.is_packed ? static_cast<CacheView&>(p.packed_value) : p.value;
  key.blocks = value.blocks = blocks_of(call, "key_cache", key_cache, p.is_packed ? 3 : 1);
  if (p.is_packed) set_packed_caches(call, p, key_cache, value_cache);
  else set_flash_caches(call, p, key_cache, value_cache);
  check_size(call, "out", arguments.out, 2, p.value_size, "head size of value_cache");
  const bool is_multiple = p.num_kv_heads == 0 ? p.num_query_heads == 0 : p.num_query_heads % p.num_kv_heads == 0;
  if (!is_multiple) {
    call.fail("query", join({"a multiple of ", text(p.num_kv_heads), " heads (heads of key_cache) in dimension 1"}),
              shape_text(arguments.query));
  }

  const CacheFormat& format = cache_format(call, arguments.kv_cache_dtype, FormatFamily::kCache);
  const Codec codec = cache_codec(call, format, "key_cache", key_cache, p.dtype, "query");
  check_dtype(call, "value_cache", value_cache, key_cache.dtype(), "key_cache");
  key.codec = value.codec = codec;
  key.stride_block_bytes = stride_bytes(key_cache, 0);
  value.stride_block_bytes = stride_bytes(value_cache, 0);
  if (codec.is_float()) return;
  set_scale(call, key, "k_scale", arguments.k_scale, p.num_kv_heads);
  set_scale(call, value, "v_scale", arguments.v_scale, p.num_kv_heads);
}

// Checks a tensor with an element for each query head.
void check_per_head(Call& call, std::string_view argument, const Tensor& tensor, int64_t num_heads) {
  check_device_and_dim(call, argument, tensor, 1);
  check_size(call, argument, tensor, 0, num_heads, "heads of query");
  check_inner_stride(call, argument, tensor);
}

// Checks alibi_slopes, sinks and query_mask, and sets the first two. set_sequences() sets query_mask.
void set_options(Call& call, PagedAttentionParams& p, const AttentionArguments& arguments) {
  AttentionOptions& options = p.options;
  if (arguments.alibi_slopes.has_value()) {
    const Tensor& slopes = *arguments.alibi_slopes;
    check_per_head(call, "alibi_slopes", slopes, p.num_query_heads);
    check_dtype(call, "alibi_slopes", slopes, Dtype::kFloat32);
    options.alibi_slopes = reinterpret_cast<const float*>(data(call, "alibi_slopes", slopes));
  }
  if (arguments.sinks.has_value()) {
    const Tensor& sinks = *arguments.sinks;
    check_per_head(call, "sinks", sinks, p.num_query_heads);
    if (sinks.dtype() != Dtype::kFloat32) check_dtype(call, "sinks", sinks, arguments.query.dtype(), "query");
    options.sinks_dtype = sinks.dtype() == Dtype::kFloat32 ? Float::kFloat32 : p.dtype;
    options.sinks = data(call, "sinks", sinks);
  }
  if (!arguments.query_mask.has_value()) return;
  const Tensor& mask = *arguments.query_mask;
  check_device_and_dim(call, "query_mask", mask, 1);
  check_dtype(call, "query_mask", mask, Dtype::kInt64);
  check_inner_stride(call, "query_mask", mask);
  if (!options.is_causal) call.fail("causal", "True with query_mask", "False");
}

// Returns the number of rows that query, out, lse and query_mask all have. Fails if a tensor has fewer than `least`.
int64_t num_rows(const Call& call, const AttentionArguments& arguments, int64_t least) {
  int64_t rows = std::min(arguments.query.size(0), arguments.out.size(0));
  check_min_size(call, "query", arguments.query, 0, least, "elements of seq_lens");
  check_min_size(call, "out", arguments.out, 0, least, "elements of seq_lens");
  if (arguments.lse.has_value()) {
    check_min_size(call, "lse", *arguments.lse, 1, least, "elements of seq_lens");
    rows = std::min(rows, arguments.lse->size(1));
  }
  if (arguments.query_mask.has_value()) {
    check_min_size(call, "query_mask", *arguments.query_mask, 0, least, "elements of seq_lens");
    rows = std::min(rows, arguments.query_mask->size(0));
  }
  return rows;
}

void set_sequences(Call& call, PagedAttentionParams& p, const AttentionArguments& arguments) {
  if (arguments.lse.has_value()) {
    const MutableTensor& lse = *arguments.lse;
    check_device_and_dim(call, "lse", lse, 2);
    check_dtype(call, "lse", lse, Dtype::kFloat32);
    check_size(call, "lse", lse, 0, p.num_query_heads, "heads of query");
    check_not_expanded(call, "lse", lse);
    p.lse = {nullptr, stride_bytes(lse, 0), stride_bytes(lse, 1)};
  }
  call.check_device("seq_lens", arguments.sequences.seq_lens);
  check_dim(call, "seq_lens", arguments.sequences.seq_lens, 1);
  const bool is_one_row_each = !arguments.sequences.cu_query_lens.has_value();
  const int64_t rows = num_rows(call, arguments, is_one_row_each ? arguments.sequences.seq_lens.size(0) : 0);
  p.sequences = make_attention_sequences(call, p.blocks(), rows, arguments.sequences);
  if (!arguments.query_mask.has_value()) return;
  if (p.sequences.max_query_len > 64) {
    call.fail("max_query_len", "at most 64 with query_mask", text(p.sequences.max_query_len));
  }
  p.options.query_mask = reinterpret_cast<const int64_t*>(data(call, "query_mask", *arguments.query_mask));
}

// Sets all params but the workspace and what set_addresses() sets. The caller has set the members of p.options that are
// not tensors.
void set_all(Call& call, PagedAttentionParams& p, const AttentionArguments& arguments) {
  set_query(call, p, arguments);
  set_caches(call, p, arguments);
  set_options(call, p, arguments);
  set_sequences(call, p, arguments);
}

// Checks the values of the index tensors, and sets the addresses of the other tensors.
void set_addresses(Call& call, PagedAttentionParams& p, const AttentionArguments& arguments) {
  if (p.sequences.num_rows == 0 || p.num_query_heads == 0) call.set_nothing_to_do();
  check_attention_sequences(call, p.sequences, p.options, p.blocks(), arguments.sequences.block_table_name);
  if (call.nothing_to_do()) return;
  p.query.data = data(call, "query", arguments.query);
  CacheView& key = p.is_packed ? static_cast<CacheView&>(p.packed_key) : p.key;
  CacheView& value = p.is_packed ? static_cast<CacheView&>(p.packed_value) : p.value;
  key.data = data(call, "key_cache", arguments.key_cache);
  value.data = data(call, "value_cache", arguments.value_cache);
  p.out.data = mutable_data(call, "out", arguments.out);
  if (arguments.lse.has_value()) p.lse.data = mutable_data(call, "lse", *arguments.lse);
}

int64_t remainder_of(const void* address) {
  return static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) % AttentionWorkspace::kAlignment);
}

AttentionWorkspace make_workspace(Call& call, const MutableTensor& workspace) {
  check_device_and_dim(call, "workspace", workspace, 1);
  check_dtype(call, "workspace", workspace, Dtype::kUInt8);
  check_inner_stride(call, "workspace", workspace);
  if (workspace.size(0) == 0) return {};
  const AttentionWorkspace view{mutable_data(call, "workspace", workspace), workspace.size(0)};
  if (remainder_of(view.data) != 0) {
    call.fail("workspace", "an address that is a multiple of 16", "a remainder of " + text(remainder_of(view.data)));
  }
  return view;
}

const Tensor* pointer_to(const OptionalTensor& tensor) { return tensor.has_value() ? &*tensor : nullptr; }

}  // namespace

PagedAttentionParams make_paged_attention_params(
    Call& call, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache, const MutableTensor& out,
    const OptionalMutableTensor& lse, const Tensor& block_table, const Tensor& seq_lens,
    const OptionalTensor& cu_query_lens, int64_t max_query_len, int64_t max_seq_len, double scale,
    const FormatName& kv_cache_dtype, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
    const MutableTensor& workspace, bool causal, int64_t window_left, double softcap,
    const OptionalTensor& alibi_slopes, const OptionalTensor& sinks, const OptionalTensor& query_mask) {
  PagedAttentionParams p{};
  p.options.scale = static_cast<float>(scale);
  p.options.softcap = softcap > 0 ? static_cast<float>(softcap) : 0;
  p.options.window_left = std::max<int64_t>(-1, window_left);
  p.options.is_causal = causal;
  const AttentionArguments arguments{query,
                                     key_cache,
                                     value_cache,
                                     out,
                                     lse,
                                     kv_cache_dtype,
                                     pointer_to(k_scale),
                                     pointer_to(v_scale),
                                     alibi_slopes,
                                     sinks,
                                     query_mask,
                                     {"block_table", block_table, seq_lens, cu_query_lens, max_query_len, max_seq_len}};
  set_all(call, p, arguments);
  p.workspace = make_workspace(call, workspace);
  set_addresses(call, p, arguments);
  return p;
}

namespace {

// The arguments that paged_attention_v1 and paged_attention_v2 have in common.
struct VllmArguments {
  const MutableTensor& out;
  const Tensor &query, &key_cache, &value_cache;
  int64_t num_kv_heads;
  double scale;
  const Tensor &block_tables, &seq_lens;
  int64_t block_size, max_seq_len;
  const OptionalTensor& alibi_slopes;
  const FormatName& kv_cache_dtype;
  const Tensor &k_scale, &v_scale;
  int64_t blocksparse_vert_stride;
};

PagedAttentionParams make_vllm_params(Call& call, const VllmArguments& vllm, const AttentionWorkspace& workspace) {
  PagedAttentionParams p{};
  p.options.scale = static_cast<float>(vllm.scale);
  p.options.window_left = -1;
  p.options.is_causal = true;
  p.workspace = workspace;
  const OptionalTensor none;
  const OptionalMutableTensor no_lse;
  const AttentionArguments arguments{
      vllm.query,    vllm.key_cache, vllm.value_cache,
      vllm.out,      no_lse,         vllm.kv_cache_dtype,
      &vllm.k_scale, &vllm.v_scale,  vllm.alibi_slopes,
      none,          none,           {"block_tables", vllm.block_tables, vllm.seq_lens, none, -1, vllm.max_seq_len}};
  check_device_and_dim(call, "query", vllm.query, 3);
  check_device_and_dim(call, "key_cache", vllm.key_cache, 5);
  set_all(call, p, arguments);
  const auto check_equal = [&](std::string_view name, int64_t value, int64_t expected) {
    if (value != expected) call.fail(name, join({text(expected), " (that of key_cache)"}), text(value));
  };
  check_equal("num_kv_heads", vllm.num_kv_heads, p.num_kv_heads);
  check_equal("block_size", vllm.block_size, p.blocks().block_size.signed_value());
  if (vllm.blocksparse_vert_stride > 1) {
    call.fail("blocksparse_vert_stride", "at most 1 (block sparsity is not supported)",
              text(vllm.blocksparse_vert_stride));
  }
  set_addresses(call, p, arguments);
  return p;
}

}  // namespace

PagedAttentionParams make_paged_attention_v1_params(
    Call& call, const MutableTensor& out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    int64_t num_kv_heads, double scale, const Tensor& block_tables, const Tensor& seq_lens, int64_t block_size,
    int64_t max_seq_len, const OptionalTensor& alibi_slopes, const FormatName& kv_cache_dtype, const Tensor& k_scale,
    const Tensor& v_scale, int64_t, int64_t, int64_t blocksparse_vert_stride, int64_t, int64_t) {
  return make_vllm_params(call,
                          {out, query, key_cache, value_cache, num_kv_heads, scale, block_tables, seq_lens, block_size,
                           max_seq_len, alibi_slopes, kv_cache_dtype, k_scale, v_scale, blocksparse_vert_stride},
                          {});
}

PagedAttentionParams make_paged_attention_v2_params(
    Call& call, const MutableTensor& out, const MutableTensor& exp_sums, const MutableTensor& max_logits,
    const MutableTensor& tmp_out, const Tensor& query, const Tensor& key_cache, const Tensor& value_cache,
    int64_t num_kv_heads, double scale, const Tensor& block_tables, const Tensor& seq_lens, int64_t block_size,
    int64_t max_seq_len, const OptionalTensor& alibi_slopes, const FormatName& kv_cache_dtype, const Tensor& k_scale,
    const Tensor& v_scale, int64_t, int64_t, int64_t blocksparse_vert_stride, int64_t, int64_t) {
  call.check_device("exp_sums", exp_sums);
  call.check_device("max_logits", max_logits);
  call.check_device("tmp_out", tmp_out);
  static_cast<void>(data(call, "exp_sums", exp_sums));
  static_cast<void>(data(call, "max_logits", max_logits));
  char* address = mutable_data(call, "tmp_out", tmp_out);
  AttentionWorkspace workspace{};
  if (tmp_out.is_contiguous() && remainder_of(address) == 0) {
    workspace = {address, tmp_out.numel() * tmp_out.element_bytes()};
  }
  return make_vllm_params(call,
                          {out, query, key_cache, value_cache, num_kv_heads, scale, block_tables, seq_lens, block_size,
                           max_seq_len, alibi_slopes, kv_cache_dtype, k_scale, v_scale, blocksparse_vert_stride},
                          workspace);
}

}  // namespace multikv
