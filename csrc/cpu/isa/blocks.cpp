#include "cpu/isa/cache/planes.h"
#include "cpu/isa/cache/strided.h"
#include "cpu/isa/simd/copy.h"
#include "cpu/isa/simd/word_hash.h"
#include "params/blocks_params.h"

namespace multikv::cpu {
namespace {

// A pair of blocks. It is skipped if a block is negative, or if both blocks are the same.
struct Pair {
  int64_t src, dst;

  bool is_copied() const { return src >= 0 && dst >= 0 && src != dst; }
};

void copy_block(const BlockLayout& layout, char* to, const char* from, Stores stores, const char* next) {
  const StridedRows& rows = layout.rows;
  if (rows.num_dims == 0) return copy(to, from, rows.row_size, stores, next);
  RowWalker offsets(rows, 0);
  for (int64_t row = 0; row < rows.num_rows; ++row, offsets.next()) {
    copy(to + offsets.dst(), from + offsets.src(), rows.row_size, stores);
  }
}

void copy_blocks(const CopyBlocksLayersParams& p, const BlockLayout& layout, char* plane, EntryRange pairs,
                 Stores stores) {
  const Indices& mapping = p.block_mapping.indices;
  const auto pair_at = [&](int64_t i) { return Pair{mapping.at(i, 0), mapping.at(i, 1)}; };
  for (int64_t i = pairs.begin; i < pairs.end; ++i) {
    const Pair pair = pair_at(i);
    if (!pair.is_copied()) continue;
    const int64_t next = i + 1 < pairs.end ? pair_at(i + 1).src : -1;
    copy_block(layout, plane + pair.dst * layout.stride_block_bytes, plane + pair.src * layout.stride_block_bytes,
               stores, next < 0 ? nullptr : plane + next * layout.stride_block_bytes);
  }
}

// Sets num_bytes bytes to 0. See copy() for `stores`.
void zero(char* to, int64_t num_bytes, Stores stores) {
  constexpr int64_t kWidth = sizeof(Bytes);
  if (stores == Stores::kOrdinary || num_bytes < kWidth || !is_worth_streaming(to, num_bytes)) {
    std::memset(to, 0, num_bytes);
    return;
  }
  const Bytes zeros{};
  store(to, zeros);
  int64_t i = -reinterpret_cast<intptr_t>(to) & (kWidth - 1);
  for (; i + kWidth <= num_bytes; i += kWidth) stream(to + i, zeros);
  if (i < num_bytes) store(to + num_bytes - kWidth, zeros);
}

// Sets the bytes of a block's rows to 0, except the first `begin` bytes.
void zero_block(const BlockLayout& layout, char* block, int64_t begin, Stores stores) {
  const int64_t num_bytes = layout.rows.num_elements();
  PieceWalker pieces(layout.rows, begin);
  while (begin < num_bytes) {
    const auto piece = pieces.next(num_bytes);
    zero(block + piece.dst, piece.count, stores);
    begin += piece.count;
  }
}

// Hashes a block whose rows are not whole words of 8 bytes. The bytes are collected in a buffer, because words do not
// end where rows end.
void hash_short_rows(WordHash& hash, const StridedRows& rows, const char* block, int64_t num_bytes) {
  constexpr int64_t kMost = 4096;
  alignas(64) char buffer[kMost];
  PieceWalker pieces(rows, 0);
  for (int64_t first = 0; first < num_bytes; first += kMost) {
    const int64_t left = num_bytes - first, count = left < kMost ? left : kMost;
    for (int64_t i = 0; i < count;) {
      const auto piece = pieces.next(count - i);
      std::memcpy(buffer + i, block + piece.src, piece.count);
      i += piece.count;
    }
    hash.add({buffer, count, first}, 0);
  }
}

// Returns the rows of a block in the order in which they lie in memory. src_stride stays the stride of the rows in the
// block. dst_stride becomes their stride in the message that is hashed (word_hash.h), so that RowWalker::dst() is the
// offset of a row in the message.
StridedRows sorted_rows(const StridedRows& rows) {
  StridedRows sorted = rows;
  for (int64_t d = 0, message_stride = rows.row_size; d < rows.num_dims; message_stride *= rows.size[d++]) {
    int64_t to = d;
    for (; to > 0 && sorted.src_stride[to - 1] > rows.src_stride[d]; --to) {
      sorted.size[to] = sorted.size[to - 1];
      sorted.src_stride[to] = sorted.src_stride[to - 1];
      sorted.dst_stride[to] = sorted.dst_stride[to - 1];
    }
    sorted.size[to] = rows.size[d];
    sorted.src_stride[to] = rows.src_stride[d];
    sorted.dst_stride[to] = message_stride;
  }
  return sorted;
}

// Hashes the first num_bytes bytes of a block. `sorted` is sorted_rows(rows). `next` is the block that is hashed after
// this one, or nullptr. If `next` is given and the message has at most kMostAhead bytes, the bytes of `next` are
// prefetched while those of this block are hashed. Otherwise the bytes that lie kAhead bytes further on are prefetched.
uint64_t hash_block(const StridedRows& rows, const StridedRows& sorted, const char* block, int64_t num_bytes,
                    const char* next) {
  WordHash hash;
  if (num_bytes == 0) return hash.finish(0);
  if (rows.row_size % 8 != 0) {
    hash_short_rows(hash, rows, block, num_bytes);
    return hash.finish(num_bytes);
  }
  constexpr int64_t kMostAhead = 65536, kAhead = 2048;
  const int64_t ahead = next == nullptr || num_bytes > kMostAhead ? kAhead : next - block;
  RowWalker row(sorted, 0);
  for (int64_t i = 0; i < sorted.num_rows; ++i, row.next()) {
    const int64_t left = num_bytes - row.dst();
    if (left > 0) hash.add({block + row.src(), left < sorted.row_size ? left : sorted.row_size, row.dst()}, ahead);
  }
  return hash.finish(num_bytes);
}

void hash_blocks(const ChecksumBlocksParams& p, const BlockLayout& layout, const Plane& plane, EntryRange entries) {
  const Indices& blocks = p.block_ids.indices;
  const StridedRows sorted = sorted_rows(layout.rows);
  for (int64_t i = entries.begin; i < entries.end; ++i) {
    const int64_t block = blocks.at(i), next = i + 1 < entries.end ? blocks.at(i + 1) : -1;
    if (block < 0) continue;
    const int64_t num_bytes =
        p.num_tokens.is_given() ? p.num_tokens.at(i) * layout.token_bytes : layout.rows.num_elements();
    const uint64_t hash = hash_block(layout.rows, sorted, plane.data + block * layout.stride_block_bytes, num_bytes,
                                     next < 0 ? nullptr : plane.data + next * layout.stride_block_bytes);
    std::memcpy(p.out + i * p.out_stride_block_bytes + plane.index * 8, &hash, sizeof hash);
  }
}

void zero_blocks(const ZeroBlocksParams& p, const BlockLayout& layout, char* plane, EntryRange entries, Stores stores) {
  const int64_t num_tokens = layout.rows.num_elements() / layout.token_bytes;
  for (int64_t i = entries.begin; i < entries.end; ++i) {
    const int64_t block = p.block_ids.indices.at(i);
    const int64_t first = p.first_token.is_given() ? p.first_token.at(i) : 0;
    if (block < 0 || first >= num_tokens) continue;
    zero_block(layout, plane + block * layout.stride_block_bytes, first * layout.token_bytes, stores);
  }
}

}  // namespace

template <>
void run<kIsa>(const CopyBlocksLayersParams& p, int64_t begin, int64_t end, Stores stores) {
  for_each_plane(p.planes, p.block_mapping.size, begin, end,
                 [&](const BlockLayout& layout, const Plane& plane, EntryRange pairs) {
                   copy_blocks(p, layout, plane.data, pairs, stores);
                 });
  finish(stores);
}

template <>
void run<kIsa>(const ZeroBlocksParams& p, int64_t begin, int64_t end, Stores stores) {
  for_each_plane(p.planes, p.block_ids.size, begin, end,
                 [&](const BlockLayout& layout, const Plane& plane, EntryRange entries) {
                   zero_blocks(p, layout, plane.data, entries, stores);
                 });
  finish(stores);
}

template <>
void run<kIsa>(const ChecksumBlocksParams& p, int64_t begin, int64_t end, Stores) {
  for_each_plane(p.planes, p.block_ids.size, begin, end,
                 [&](const BlockLayout& layout, const Plane& plane, EntryRange entries) {
                   hash_blocks(p, layout, plane, entries);
                 });
}

}  // namespace multikv::cpu
