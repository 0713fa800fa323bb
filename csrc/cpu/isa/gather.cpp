#include "vec.h"

namespace multikv::cpu {
namespace {

// The last sequence that begins at or before the token; -1 if none does.
int64_t sequence_of(const Indices& cu_seq_lens, int64_t num_sequences, int64_t token) {
  int64_t low = 0, high = num_sequences + 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cu_seq_lens.at(middle) <= token) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// Copies one entry, row by row.
void copy_entry(const Entry& entry, char* to, const char* from, Stores stores) {
  for (int64_t row = 0; row < entry.num_rows; ++row) {
    int64_t rest = row, src_offset = 0, dst_offset = 0;
    for (int d = 0; d < entry.num_dims; ++d) {
      const int64_t index = rest % entry.size[d];
      rest /= entry.size[d];
      src_offset += index * entry.src_stride_bytes[d];
      dst_offset += index * entry.dst_stride_bytes[d];
    }
    copy(to + dst_offset, from + src_offset, entry.row_bytes, stores);
  }
}

// `count` entries from neighbouring slots of one block to neighbouring rows.
void copy_entries(const CpGatherCacheParams& p, char* to, const char* from, int64_t count, Stores stores) {
  const int64_t row_bytes = p.entry.row_bytes;
  if (p.entry.num_rows == 1 && p.src_stride_slot_bytes == row_bytes && p.dst_stride_token_bytes == row_bytes) {
    copy(to, from, count * row_bytes, stores);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    copy_entry(p.entry, to + i * p.dst_stride_token_bytes, from + i * p.src_stride_slot_bytes, stores);
  }
}

}  // namespace

template <>
void cp_gather_cache<kIsa>(const CpGatherCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  const auto block_size = static_cast<int64_t>(p.block_size.value);
  int64_t s = sequence_of(p.cu_seq_lens, p.num_sequences, begin);
  if (s < 0) {
    s = 0;
    begin = p.cu_seq_lens.at(0);
  }
  for (int64_t token = begin; token < end && s < p.num_sequences; ++s) {
    const int64_t first = p.cu_seq_lens.at(s);
    const int64_t sequence_end = p.cu_seq_lens.at(s + 1);
    const int64_t stop = sequence_end < end ? sequence_end : end;
    const int64_t start = p.seq_starts.data == nullptr ? 0 : p.seq_starts.at(s);
    while (token < stop) {
      // The sum of two numbers that are not negative fits an unsigned one.
      const uint64_t position = static_cast<uint64_t>(start) + static_cast<uint64_t>(token - first);
      const auto block = static_cast<int64_t>(position / static_cast<uint64_t>(block_size));
      if (block >= p.blocks_per_sequence) break;
      const auto offset = static_cast<int64_t>(position - static_cast<uint64_t>(block) * block_size);
      const int64_t count = stop - token < block_size - offset ? stop - token : block_size - offset;
      const char* from = static_cast<const char*>(p.src_cache) +
                         p.block_table.at(s, block) * p.src_stride_block_bytes + offset * p.src_stride_slot_bytes;
      copy_entries(p, static_cast<char*>(p.dst) + token * p.dst_stride_token_bytes, from, count, stores);
      token += count;
    }
    token = stop > token ? stop : token;
  }
  finish(stores);
}

}  // namespace multikv::cpu
