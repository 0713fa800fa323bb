// Views of caches: data pointer, strides, block size, codec and scales. Each layout has its own struct, which computes
// the addresses of entries and the alignment of the cache.
#pragma once

#include "core/alignment.h"
#include "core/format.h"
#include "core/slots.h"

namespace multikv {

// The members that all layouts have.
struct CacheView {
  char* data;  // ops that gather only read it
  int64_t stride_block_bytes;
  Blocks blocks;
  Codec codec;
  const float* scale;         // for ScalePlace::kArgument: one scale, or one per head; nullptr means a scale of 1
  int64_t scale_stride_head;  // in elements; 0 if all heads share one scale

  constexpr char* block(int64_t block) const { return data + block * stride_block_bytes; }
  constexpr const float* scale_of(int64_t head) const { return scale + head * scale_stride_head; }
  AlignmentBits alignment_bits() const { return AlignmentBits(data) | stride_block_bytes; }
};

// A cache [blocks, block_size, heads, head_size]. Its strides can express the memory orders NHD and HND, K and V
// interleaved in one tensor, and padding.
struct FlashCache : CacheView {
  int64_t stride_slot_bytes, stride_head_bytes;

  constexpr char* head(BlockOffset at, int64_t head) const {
    return block(at.block) + at.offset * stride_slot_bytes + head * stride_head_bytes;
  }
  AlignmentBits alignment_bits() const { return CacheView::alignment_bits() | stride_slot_bytes | stride_head_bytes; }
};

// The packed layouts of the first PagedAttention. The innermost dimension of the key cache holds vector_size
// neighbouring elements of the key of one slot. The innermost dimension of the value cache holds the same element
// of the values of vector_size neighbouring slots. In the shapes below, `vector` is an index of dimension 2, and `row`
// an index of dimension 3. The pictures show one head of one block for vector_size = 4; s0 d4 is element 4 of slot 0.
//
//   keys [blocks, heads, head_size / vector_size, block_size, vector_size]
//
//                 row 0                        row 1
//     vector 0    s0 d0  s0 d1  s0 d2  s0 d3   s1 d0  s1 d1  s1 d2  s1 d3   ...
//     vector 1    s0 d4  s0 d5  s0 d6  s0 d7   s1 d4  s1 d5  s1 d6  s1 d7   ...
//
//   values [blocks, heads, block_size / vector_size, head_size, vector_size]
//
//                 row 0                        row 1
//     vector 0    s0 d0  s1 d0  s2 d0  s3 d0   s0 d1  s1 d1  s2 d1  s3 d1   ...
//     vector 1    s4 d0  s5 d0  s6 d0  s7 d0   s4 d1  s5 d1  s6 d1  s7 d1   ...
//
// Values that are not interleaved are [blocks, heads, head_size, block_size]. This is the same layout for a
// vector_size of block_size: dimension 2 has size 1 and is left out.
struct PackedCache : CacheView {
  int64_t stride_head_bytes, stride_vector_bytes, stride_row_bytes;
  Divisor vector_size;

  AlignmentBits alignment_bits() const {
    return CacheView::alignment_bits() | stride_head_bytes | stride_vector_bytes | stride_row_bytes;
  }

  // The offset of an element from the start of its block. `packed` is the element's index along the dimension that is
  // split into vectors, and `row` its index along the other. For keys, `packed` is the element of the head, and `row`
  // the offset of the slot in the block; for values it is the other way round. divide(x, divisor) is the backend's
  // division.
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

// A cache [blocks, block_size, entry]. An entry is MLA's latent vector with its rotary key, an fp8_ds_mla entry, or any
// bytes.
struct EntryCache : CacheView {
  int64_t stride_slot_bytes;

  constexpr char* entry(BlockOffset at) const { return block(at.block) + at.offset * stride_slot_bytes; }
  AlignmentBits alignment_bits() const { return CacheView::alignment_bits() | stride_slot_bytes; }
};

// The entry of fp8_ds_mla, the format of DeepSeek's sparse attention, in bytes:
//
//   0           512                     528                  656
//   | 512 codes | 4 scales              | rotary key         |
//   | e4m3      | float32, power of two | 64 16-bit elements |
//
// Scale i is that of codes 128 * i .. 128 * i + 127.
struct DsMlaEntry {
  static constexpr int kLatentSize = 512, kTileSize = 128, kRopeSize = 64;
  static constexpr int kScalesAt = 512, kRopeAt = 528, kBytes = 656;
};

// The indexer's cache. A block is contiguous; the codes of all its slots come before the scales of all its slots:
//
//   | codes of slot 0 | codes of slot 1 | ... | scales of slot 0 | scales of slot 1 | ... |
//     code_bytes                              scale_bytes
struct IndexerCache : CacheView {
  int64_t code_bytes, scale_bytes;  // of one slot

  constexpr char* codes(BlockOffset at) const { return block(at.block) + at.offset * code_bytes; }
  constexpr char* scales(BlockOffset at) const {
    return block(at.block) + blocks.block_size.signed_value() * code_bytes + at.offset * scale_bytes;
  }
  // The alignment of the codes. Scales need no alignment: kernels read and write them as four-byte words at any
  // address.
  AlignmentBits code_alignment_bits() const { return CacheView::alignment_bits() | code_bytes; }
};

}  // namespace multikv
