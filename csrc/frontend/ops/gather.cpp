#include "frontend/check/formats.h"
#include "frontend/check/sequence_bounds.h"
#include "frontend/check/shapes.h"
#include "frontend/check/strided.h"
#include "params/gather_params.h"

namespace multikv {

namespace {

// The optional arguments of cp_gather_and_upconvert_fp8_kv_cache that are given all or not at all.
struct HostRows {
  const OptionalTensor &cache, &host_row_ids, &device_row_ids;
};

bool are_given(const Call& call, const HostRows& rows) {
  const bool is_any_given = rows.cache.has_value() || rows.host_row_ids.has_value() || rows.device_row_ids.has_value();
  const auto check = [&](std::string_view argument, const OptionalTensor& tensor) {
    if (is_any_given && !tensor.has_value()) {
      call.fail(argument, "a tensor (host_cache, host_row_ids and device_row_ids are given together)", "None");
    }
  };
  check("host_cache", rows.cache);
  check("host_row_ids", rows.host_row_ids);
  check("device_row_ids", rows.device_row_ids);
  return is_any_given;
}

// Checks host_cache and the row ids, and sets the number of logical blocks: there is a row id for each logical slot.
void set_host_rows(Call& call, CpGatherAndUpconvertFp8KvCacheParams& p, const Tensor& host_cache,
                   const Tensor& host_row_ids, const Tensor& device_row_ids) {
  call.check_on_cpu("host_cache", host_cache);
  check_dim(call, "host_cache", host_cache, 2);
  check_dtype(call, "host_cache", host_cache, Dtype::kUInt8);
  check_size(call, "host_cache", host_cache, 1, DsMlaEntry::kBytes, "bytes of an fp8_ds_mla entry");
  check_inner_stride(call, "host_cache", host_cache);
  p.host_row_ids = indices_of(call, "host_row_ids", host_row_ids, 1);
  p.device_row_ids = indices_of(call, "device_row_ids", device_row_ids, 1);
  const int64_t num_rows = host_row_ids.size(0);
  check_size(call, "device_row_ids", device_row_ids, 0, num_rows, "elements of host_row_ids");
  const int64_t block_size = p.cache.blocks.block_size.signed_value();
  if (num_rows % block_size != 0) {
    call.fail("host_row_ids", join({"a multiple of ", text(block_size), " elements (block size of src_cache)"}),
              shape_text(host_row_ids));
  }
  p.sequences.blocks.num_blocks = num_rows / block_size;
  p.num_host_rows = host_cache.size(0);
  p.host_stride_row_bytes = host_cache.stride(0);
}

// Checks workspace_starts, which has an element for each sequence, and possibly one more, which is not read.
void set_workspace_starts(Call& call, Sequences& sequences, const Tensor& workspace_starts) {
  sequences.cu_seq_lens = indices_of(call, "workspace_starts", workspace_starts, 1);
  sequences.num_bounds = sequences.num_sequences;
  const int64_t size = workspace_starts.size(0), batch_size = sequences.num_sequences;
  if (size == batch_size || size - 1 == batch_size) return;
  call.fail("workspace_starts", count_text(batch_size, "element") + " (batch_size), or one more",
            shape_text(workspace_starts));
}

}  // namespace

CpGatherCacheParams make_cp_gather_cache_params(Call& call, const Tensor& src_cache, const MutableTensor& dst,
                                                const Tensor& block_table, const Tensor& cu_seq_lens,
                                                int64_t batch_size, const OptionalTensor& seq_starts) {
  CpGatherCacheParams p{};
  call.check_device("src_cache", src_cache);
  if (src_cache.dim() < 2) call.fail("src_cache", "at least 2 dimensions", shape_text(src_cache));
  check_device_and_dim(call, "dst", dst, src_cache.dim() - 1);
  check_same_dtype(call, "dst", dst, src_cache, "src_cache");
  for (int64_t d = 1; d < dst.dim(); ++d)
    check_size(call, "dst", dst, d, src_cache.size(d + 1), "entry size of src_cache");
  check_inner_stride(call, "src_cache", src_cache);
  check_writable(call, "dst", dst);
  p.cache = entry_cache(call, "src_cache", src_cache);
  p.sequences = make_sequences(call, p.cache.blocks, block_table, seq_starts);
  check_batch_size(call, p.sequences, batch_size);
  set_cu_seq_lens(call, p.sequences, cu_seq_lens);
  p.sequences.num_tokens = dst.size(0);

  p.entry = strided_rows(call, "src_cache", {src_cache, 2}, {dst, 1}, src_cache.element_bytes(), "entries of ");
  const int64_t entry_bytes = wrapping_product(p.entry.num_rows, p.entry.row_size);
  p.dst = {nullptr, stride_bytes(dst, 0), entry_bytes};
  check_sequences(call, p.sequences);
  if (call.nothing_to_do() || entry_bytes == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.cache.data = data(call, "src_cache", src_cache);
  p.dst.data = mutable_data(call, "dst", dst);
  return p;
}

CpGatherAndUpconvertFp8KvCacheParams make_cp_gather_and_upconvert_fp8_kv_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table,
    const Tensor& workspace_starts, int64_t batch_size, const OptionalTensor& seq_starts,
    const OptionalTensor& host_cache, const OptionalTensor& host_row_ids, const OptionalTensor& device_row_ids) {
  CpGatherAndUpconvertFp8KvCacheParams p{};
  check_device_and_dim(call, "src_cache", src_cache, 3);
  const Element element = e4m3_element(call, "src_cache", src_cache);
  check_size(call, "src_cache", src_cache, 2, DsMlaEntry::kBytes, "bytes of an fp8_ds_mla entry");
  check_inner_stride(call, "src_cache", src_cache);
  check_device_and_dim(call, "dst", dst, 2);
  check_dtype(call, "dst", dst, Dtype::kBFloat16);
  check_size(call, "dst", dst, 1, DsMlaEntry::kLatentSize + DsMlaEntry::kRopeSize, "elements of an fp8_ds_mla entry");
  check_writable(call, "dst", dst);
  p.cache = entry_cache(call, "src_cache", src_cache);
  p.cache.codec = with_element(format_rows::kDsMla, element);
  p.dst = token_rows(dst);
  p.sequences = make_sequences(call, p.cache.blocks, block_table, seq_starts);
  check_batch_size(call, p.sequences, batch_size);
  set_workspace_starts(call, p.sequences, workspace_starts);
  p.sequences.num_tokens = dst.size(0);
  const bool has_host_rows = are_given(call, {host_cache, host_row_ids, device_row_ids});
  if (has_host_rows) set_host_rows(call, p, *host_cache, *host_row_ids, *device_row_ids);

  const RowIds row_ids{p.host_row_ids, p.device_row_ids, p.num_host_rows, p.cache.blocks.num_slots()};
  check_sequences(call, p.sequences, {.argument = "workspace_starts"}, has_host_rows ? &row_ids : nullptr);
  if (has_host_rows && p.num_host_rows > 0) p.host_cache = host_data(call, "host_cache", *host_cache);
  if (call.nothing_to_do()) return p;
  p.cache.data = data(call, "src_cache", src_cache);
  p.dst.data = mutable_data(call, "dst", dst);
  return p;
}

}  // namespace multikv
