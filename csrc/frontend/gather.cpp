#include "frontend.h"
#include "indices.h"

namespace multikv {

namespace {

// Merges the dimensions of an entry that follow each other in memory, in the cache and in the output alike.
Entry make_entry(const Call& call, const Tensor& src_cache, const Tensor& dst) {
  const int64_t element_bytes = src_cache.element_bytes();
  Entry entry{};
  entry.row_bytes = element_bytes;
  entry.num_rows = 1;
  for (int64_t d = dst.dim() - 1; d >= 1; --d) {
    const int64_t size = dst.size(d);
    const int64_t src_stride = src_cache.stride(d + 1) * element_bytes;
    const int64_t dst_stride = dst.stride(d) * element_bytes;
    const int outer = entry.num_dims - 1;
    if (size == 1) continue;
    if (outer < 0 && src_stride == entry.row_bytes && dst_stride == entry.row_bytes) {
      entry.row_bytes *= size;
      continue;
    }
    entry.num_rows *= size;
    if (outer >= 0 && src_stride == entry.src_stride_bytes[outer] * entry.size[outer] &&
        dst_stride == entry.dst_stride_bytes[outer] * entry.size[outer]) {
      entry.size[outer] *= size;
      continue;
    }
    if (entry.num_dims == Entry::kMaxDims) {
      call.fail("src_cache", "entries of at most " + std::to_string(Entry::kMaxDims) + " strided dimensions",
                "shape " + shape_text(src_cache));
    }
    entry.size[entry.num_dims] = size;
    entry.src_stride_bytes[entry.num_dims] = src_stride;
    entry.dst_stride_bytes[entry.num_dims] = dst_stride;
    ++entry.num_dims;
  }
  return entry;
}

}  // namespace

CpGatherCacheParams make_cp_gather_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    int64_t batch_size, const std::optional<Tensor>& seq_starts) {
  CpGatherCacheParams p{};
  call.check_device("src_cache", src_cache);
  if (src_cache.dim() < 2) call.fail("src_cache", "at least 2 dimensions", "shape " + shape_text(src_cache));
  call.check_device("dst", dst);
  call.check_dim("dst", dst, src_cache.dim() - 1);
  if (dst.raw_dtype() != src_cache.raw_dtype()) {
    call.fail("dst", "dtype " + dtype_text(src_cache) + " like src_cache", dtype_text(dst));
  }
  for (int64_t d = 1; d < dst.dim(); ++d) call.check_size("dst", dst, d, src_cache.size(d + 1), "src_cache's entry");
  call.check_inner_stride("src_cache", src_cache);
  call.check_inner_stride("dst", dst);
  call.check_not_expanded("dst", dst);
  if (src_cache.size(1) == 0) call.fail("src_cache", "a block size of at least 1", "shape " + shape_text(src_cache));

  p.block_table = call.indices("block_table", block_table, 2);
  p.cu_seq_lens = call.indices("cu_seq_lens", cu_seq_lens, 1);
  p.num_sequences = block_table.size(0);
  if (batch_size != p.num_sequences) {
    call.fail("batch_size", std::to_string(p.num_sequences) + " (rows of block_table)", std::to_string(batch_size));
  }
  call.check_size("cu_seq_lens", cu_seq_lens, 0, batch_size + 1, "batch_size + 1");
  if (seq_starts.has_value()) {
    p.seq_starts = call.indices("seq_starts", *seq_starts, 1);
    call.check_size("seq_starts", *seq_starts, 0, batch_size, "batch_size");
  }

  const int64_t element_bytes = src_cache.element_bytes();
  p.entry = make_entry(call, src_cache, dst);
  p.src_stride_block_bytes = src_cache.stride(0) * element_bytes;
  p.src_stride_slot_bytes = src_cache.stride(1) * element_bytes;
  p.dst_stride_token_bytes = dst.stride(0) * element_bytes;
  p.blocks_per_sequence = block_table.size(1);
  p.num_tokens = dst.size(0);
  p.num_blocks = src_cache.size(0);
  p.block_size = Divisor::of(src_cache.size(1));
  if (batch_size == 0) {
    call.set_nothing_to_do();
    return p;
  }
  check_sequences(call, {p.block_table, p.cu_seq_lens, p.seq_starts, p.num_sequences, p.blocks_per_sequence,
                         p.num_tokens, p.num_blocks, src_cache.size(1)});
  if (dst.numel() == 0 || p.blocks_per_sequence == 0) call.set_nothing_to_do();
  p.src_cache = call.data("src_cache", src_cache);
  p.dst = call.mutable_data("dst", dst);
  return p;
}

}  // namespace multikv
