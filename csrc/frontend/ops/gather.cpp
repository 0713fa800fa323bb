#include "frontend/check/indices.h"
#include "frontend/check/strided.h"
#include "frontend/ops/ops.h"

namespace multikv {

namespace {

// Blocks of entries, and rows of entries to write: the strides that both copying ops have.
void set_strides(CpGatherCacheParams& p, const Tensor& src_cache, const Tensor& dst) {
  p.src_stride_block_bytes = src_cache.stride(0) * src_cache.element_bytes();
  p.src_stride_slot_bytes = src_cache.stride(1) * src_cache.element_bytes();
  p.dst_stride_token_bytes = dst.stride(0) * dst.element_bytes();
}

// The host's part of what the op reads, all of it or none.
bool has_host_rows(const Call& call, const OptionalTensor& host_cache, const OptionalTensor& host_row_ids,
                   const OptionalTensor& device_row_ids) {
  const bool any = host_cache.has_value() || host_row_ids.has_value() || device_row_ids.has_value();
  const auto check = [&](std::string_view argument, const OptionalTensor& tensor) {
    if (any && !tensor.has_value()) {
      call.fail(argument, "a tensor, or none of host_cache, host_row_ids and device_row_ids", "None");
    }
  };
  check("host_cache", host_cache);
  check("host_row_ids", host_row_ids);
  check("device_row_ids", device_row_ids);
  return any;
}

void set_host_rows(Call& call, CpGatherAndUpconvertFp8KvCacheParams& p, const Tensor& host_cache,
                   const Tensor& host_row_ids, const Tensor& device_row_ids) {
  call.check_on_cpu("host_cache", host_cache);
  call.check_dim("host_cache", host_cache, 2);
  call.check_dtype("host_cache", host_cache, Dtype::kUInt8, "");
  call.check_size("host_cache", host_cache, 1, DsMlaEntry::kBytes, "bytes of an fp8_ds_mla entry");
  call.check_inner_stride("host_cache", host_cache);
  p.host_row_ids = call.indices("host_row_ids", host_row_ids, 1);
  p.device_row_ids = call.indices("device_row_ids", device_row_ids, 1);
  const int64_t num_rows = host_row_ids.size(0);
  call.check_size("device_row_ids", device_row_ids, 0, num_rows, "elements of host_row_ids");
  const auto block_size = static_cast<int64_t>(p.sequences.block_size.value);
  if (num_rows % block_size != 0) {
    call.fail("host_row_ids",
              join({"a multiple of ", std::to_string(block_size), " (block size of src_cache) elements"}),
              join({"shape ", shape_text(host_row_ids)}));
  }
  p.sequences.num_blocks = num_rows / block_size;
  p.num_host_rows = host_cache.size(0);
  p.host_stride_row_bytes = host_cache.stride(0);
}

}  // namespace

CpGatherCacheParams make_cp_gather_cache_params(Call& call, const Tensor& src_cache, const MutableTensor& dst,
                                                const Tensor& block_table, const Tensor& cu_seq_lens,
                                                int64_t batch_size, const OptionalTensor& seq_starts) {
  CpGatherCacheParams p{};
  call.check_device("src_cache", src_cache);
  if (src_cache.dim() < 2) call.fail("src_cache", "at least 2 dimensions", "shape " + shape_text(src_cache));
  call.check_device_and_dim("dst", dst, src_cache.dim() - 1);
  call.check_same_dtype("dst", dst, src_cache, "src_cache");
  for (int64_t d = 1; d < dst.dim(); ++d) call.check_size("dst", dst, d, src_cache.size(d + 1), "src_cache's entry");
  call.check_inner_stride("src_cache", src_cache);
  call.check_writable("dst", dst);
  p.sequences = make_sequences(call, "src_cache", src_cache, block_table, seq_starts);
  check_batch_size(call, p.sequences, batch_size);
  set_cu_seq_lens(call, p.sequences, cu_seq_lens);
  p.sequences.num_tokens = dst.size(0);

  p.entry = merge_rows(call, "src_cache", src_cache, 2, dst, 1, src_cache.element_bytes(), "entries of ");
  set_strides(p, src_cache, dst);
  check_sequences(call, p.sequences);
  if (call.nothing_to_do() || p.entry.num_rows * p.entry.row_size == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.src_cache = call.data("src_cache", src_cache);
  p.dst = call.mutable_data("dst", dst);
  return p;
}

GatherAndMaybeDequantCacheParams make_gather_and_maybe_dequant_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    const Tensor& token_to_seq, int64_t num_tokens, const FormatName& kv_cache_dtype, const Tensor& scale,
    const OptionalTensor& seq_starts) {
  GatherAndMaybeDequantCacheParams p{};
  Sequences& sequences = p.gather.sequences;
  call.check_device_and_dim("src_cache", src_cache, 3);
  call.check_device_and_dim("dst", dst, 2);
  p.dtype = call.float_dtype("dst", dst);
  call.check_at_least("num_tokens", num_tokens, 0);
  call.check_min_size("dst", dst, 0, num_tokens, "num_tokens");
  call.check_size("dst", dst, 1, src_cache.size(2), "src_cache's entry");
  call.check_inner_stride("src_cache", src_cache);
  call.check_writable("dst", dst);
  sequences = make_sequences(call, "src_cache", src_cache, block_table, seq_starts);
  set_cu_seq_lens(call, sequences, cu_seq_lens);
  sequences.num_tokens = num_tokens;
  // A hint that needs no reading: bounds tell.
  static_cast<void>(call.indices("token_to_seq", token_to_seq, 1));
  call.check_min_size("token_to_seq", token_to_seq, 0, num_tokens, "num_tokens");

  call.check_name(kv_cache_dtype, FormatNames::kCache);
  p.format = call.cache_format(kv_cache_dtype, "src_cache", src_cache, p.dtype, "dst");
  if (p.format != CacheFormat::kSame) p.scale = call.scale("scale", scale);
  set_strides(p.gather, src_cache, dst);
  p.gather.entry.row_size = wrapping_product(src_cache.size(2), src_cache.element_bytes());
  p.gather.entry.num_rows = 1;
  check_sequences(call, sequences, {.may_pass_the_end = true});
  if (call.nothing_to_do() || src_cache.size(2) == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.gather.src_cache = call.data("src_cache", src_cache);
  p.gather.dst = call.mutable_data("dst", dst);
  return p;
}

CpGatherAndUpconvertFp8KvCacheParams make_cp_gather_and_upconvert_fp8_kv_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table,
    const Tensor& workspace_starts, int64_t batch_size, const OptionalTensor& seq_starts,
    const OptionalTensor& host_cache, const OptionalTensor& host_row_ids, const OptionalTensor& device_row_ids) {
  CpGatherAndUpconvertFp8KvCacheParams p{};
  Sequences& sequences = p.sequences;
  call.check_device_and_dim("src_cache", src_cache, 3);
  p.format = call.e4m3_format("src_cache", src_cache);
  call.check_size("src_cache", src_cache, 2, DsMlaEntry::kBytes, "bytes of an fp8_ds_mla entry");
  call.check_inner_stride("src_cache", src_cache);
  call.check_device_and_dim("dst", dst, 2);
  call.check_dtype("dst", dst, Dtype::kBFloat16, "");
  call.check_size("dst", dst, 1, DsMlaEntry::kLatentSize + DsMlaEntry::kRopeSize, "elements of an fp8_ds_mla entry");
  call.check_writable("dst", dst);
  sequences = make_sequences(call, "src_cache", src_cache, block_table, seq_starts);
  check_batch_size(call, sequences, batch_size);
  sequences.cu_seq_lens = call.indices("workspace_starts", workspace_starts, 1);
  sequences.num_bounds = sequences.num_sequences;
  if (workspace_starts.size(0) != batch_size && workspace_starts.size(0) - 1 != batch_size) {
    call.fail("workspace_starts", join({std::to_string(batch_size), " elements (batch_size), or one more"}),
              join({"shape ", shape_text(workspace_starts)}));
  }
  sequences.num_tokens = dst.size(0);
  p.num_device_blocks = sequences.num_blocks;
  const bool with_host = has_host_rows(call, host_cache, host_row_ids, device_row_ids);
  if (with_host) set_host_rows(call, p, *host_cache, *host_row_ids, *device_row_ids);
  p.src_stride_block_bytes = src_cache.stride(0);
  p.src_stride_slot_bytes = src_cache.stride(1);
  p.dst_stride_token = dst.stride(0);

  const RowIds row_ids{p.host_row_ids, p.device_row_ids, p.num_host_rows, p.num_device_blocks * src_cache.size(1)};
  check_sequences(call, sequences, {.argument = "workspace_starts"}, with_host ? &row_ids : nullptr);
  if (with_host && p.num_host_rows > 0) p.host_cache = call.host_data("host_cache", *host_cache);
  if (call.nothing_to_do()) return p;
  p.src_cache = call.data("src_cache", src_cache);
  p.dst = call.mutable_data("dst", dst);
  return p;
}

}  // namespace multikv
