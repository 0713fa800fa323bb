// Where a cache lies and what it holds, with one accessor per layout. Writers and gathers hold views; addresses and
// alignment are computed here and nowhere else. Strides count bytes.
#pragma once

#include "core/alignment.h"
#include "core/format.h"
#include "core/slots.h"

namespace multikv {

// What all layouts share.
struct CacheView {
  char* data;  // gathers only read it
  int64_t stride_block_bytes;
  Blocks blocks;
  Codec codec;
  const float* scale;         // ScalePlace::kArgument: one float, or one per head; nullptr: 1
  int64_t scale_stride_head;  // elements; 0: one scale for all heads

  constexpr char* block(int64_t block) const { return data + block * stride_block_bytes; }
  constexpr const float* scale_of(int64_t head) const { return scale + head * scale_stride_head; }
  AlignmentBits alignment_bits() const { return AlignmentBits(data) | stride_block_bytes; }
};

// [blocks, block_size, heads, head_size]: NHD and HND order, interleaved K and V, padding.
struct FlashCache : CacheView {
  int64_t stride_slot_bytes, stride_head_bytes;

  constexpr char* head(BlockOffset at, int64_t head) const {
    return block(at.block) + at.offset * stride_slot_bytes + head * stride_head_bytes;
  }
  AlignmentBits alignment_bits() const { return CacheView::alignment_bits() | stride_slot_bytes | stride_head_bytes; }
};

// The layouts of the first PagedAttention: the innermost dimension holds `vector_size` elements, of one slot's key or
// of one dimension's values in neighbouring slots.
//
//   keys    [blocks, heads, head_size / vector_size, block_size, vector_size]
//   values  [blocks, heads, block_size / vector_size, head_size, vector_size]; vector_size = block_size unless
//   interleaved
//
// A vector is one step of dimension 2, a row one step of dimension 3.
struct PackedCache : CacheView {
  int64_t stride_head_bytes, stride_vector_bytes, stride_row_bytes;
  Divisor vector_size;

  AlignmentBits alignment_bits() const {
    return CacheView::alignment_bits() | stride_head_bytes | stride_vector_bytes | stride_row_bytes;
  }

  // The offset of an element from the start of its block. `packed` counts elements along the dimension that is split
  // into vectors. divide(x, divisor) is the backend's division.
  template <class Divide>
  constexpr int64_t offset_bytes(int64_t head, int64_t row, int64_t packed, int64_t element_bytes,
                                 Divide divide) const {
    const auto vector = static_cast<int64_t>(divide(packed, vector_size));
    return head * stride_head_bytes + vector * stride_vector_bytes + row * stride_row_bytes +
           (packed - vector * vector_size.signed_value()) * element_bytes;
  }
};

struct PackedKeyCache : PackedCache {
  template <class Divide>
  constexpr char* element(BlockOffset at, int64_t head, int64_t dim, int64_t element_bytes, Divide divide) const {
    return block(at.block) + offset_bytes(head, at.offset, dim, element_bytes, divide);
  }
};

struct PackedValueCache : PackedCache {
  template <class Divide>
  constexpr char* element(BlockOffset at, int64_t head, int64_t dim, int64_t element_bytes, Divide divide) const {
    return block(at.block) + offset_bytes(head, dim, at.offset, element_bytes, divide);
  }
};

// [blocks, block_size, entry]: MLA's latent vector and rotary key side by side, an fp8_ds_mla entry, or any bytes.
struct EntryCache : CacheView {
  int64_t stride_slot_bytes;

  constexpr char* entry(BlockOffset at) const { return block(at.block) + at.offset * stride_slot_bytes; }
  AlignmentBits alignment_bits() const { return CacheView::alignment_bits() | stride_slot_bytes; }
};

// The entry of fp8_ds_mla, the format of DeepSeek's sparse attention, in bytes:
//
//   0 .. 511    512 e4m3 codes, in 4 tiles of 128
//   512 .. 527  the 4 scales of the tiles, float32, powers of two
//   528 .. 655  64 elements of 16 bits: the rotary key
struct DsMlaEntry {
  static constexpr int kLatentSize = 512, kTileSize = 128, kRopeSize = 64;
  static constexpr int kScalesAt = 512, kRopeAt = 528, kBytes = 656;
};

// The indexer's cache. A block is contiguous: the codes of all its tokens, then the scales of all its tokens.
struct IndexerCache : CacheView {
  int64_t code_bytes, scale_bytes;  // of one token

  constexpr char* codes(BlockOffset at) const { return block(at.block) + at.offset * code_bytes; }
  constexpr char* scales(BlockOffset at) const {
    return block(at.block) + blocks.block_size.signed_value() * code_bytes + at.offset * scale_bytes;
  }
  // Of the codes; scales are read and written as words of four bytes at any address.
  AlignmentBits code_alignment_bits() const { return CacheView::alignment_bits() | code_bytes; }
};

}  // namespace multikv
