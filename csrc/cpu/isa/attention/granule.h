// The keys and values of one granule: where they lie in the cache, and their decoding into tiles of floats.
#pragma once

#include "cpu/isa/attention/products.h"
#include "cpu/isa/simd/prefetch.h"

namespace multikv::cpu {
namespace {

constexpr int64_t kTile = AttentionScratch::kTile;

// Addresses of keys and values for head 0, by the number of the key in the granule.
struct SlotAddresses {
  const char** keys;
  const char** values;
};

// The offset of the slot within a block, for keys or values of either layout.
inline int64_t key_offset(const PagedAttentionParams& p, int64_t slot) {
  return slot * (p.is_packed ? p.packed_key.stride_row_bytes : p.key.stride_slot_bytes);
}
inline int64_t value_offset(const PagedAttentionParams& p, int64_t slot) {
  if (!p.is_packed) return slot * p.value.stride_slot_bytes;
  const PackedValueCache& cache = p.packed_value;
  const int64_t size = cache.vector_size.signed_value(), vector = slot / size;
  return vector * cache.stride_vector_bytes + (slot - vector * size) * cache.codec.num_bytes(1);
}

// Finds the keys of a span of a granule. The front end has checked the blocks of all visible keys. A query mask may
// hide keys between visible ones. If the block of a hidden key is not in the cache, block 0 is read instead; the key is
// hidden, so what is read does not change the results.
inline void find_slots(const PagedAttentionParams& p, const AttentionJob& job, int64_t granule, RowSpan span,
                       const SlotAddresses& slots) {
  const int64_t block_size = p.blocks().block_size.signed_value();
  const CacheView &keys = p.key_view(), &values = p.value_view();
  const int64_t first = granule * AttentionJob::kGranule + span.begin;
  int64_t column = first / block_size, slot = first - column * block_size;
  for (int64_t j = span.begin; j < span.end; ++column, slot = 0) {
    int64_t block = p.sequences.block_table.at(job.sequence, column);
    if (block < 0 || block >= p.blocks().num_blocks) block = 0;
    const char *key_block = keys.block(block), *value_block = values.block(block);
    for (; slot < block_size && j < span.end; ++slot, ++j) {
      slots.keys[j] = key_block + key_offset(p, slot);
      slots.values[j] = value_block + value_offset(p, slot);
    }
  }
}

// A tile of decoded rows, each padded with zeros to a multiple of kLanes.
struct Tile {
  float* data;
  int64_t size;  // of a padded row
  float* row(int64_t i) const { return data + i * size; }
  TileRows rows(int64_t first) const {
    return {reinterpret_cast<const char*>(data), first, size * static_cast<int64_t>(sizeof(float))};
  }
};

// Prefetches a row into the L1 cache.
[[gnu::always_inline]] inline void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kCacheLine) __builtin_prefetch(row + i, 0, 3);
}

// Decodes the rows of `span`, whose elements are contiguous, and prefetches rows beyond it. Later calls decode the rows
// [span.end, last), so no row from `last` on is prefetched.
template <class Reader>
void decode_rows(const CachedRows& rows, RowSpan span, int64_t last, int64_t size, const Tile& tile) {
  constexpr int64_t kAhead = 24;
  for (int64_t j = span.begin; j < span.end; ++j) {
    float* to = tile.row(j - span.begin);
    if (j + kAhead < last) prefetch_row(rows(j + kAhead), size * Reader::kBytes);
    read_elements<Reader>(to, rows(j), size);
    for (int64_t d = size; d < tile.size; ++d) to[d] = 0;
  }
}

// Decodes packed keys: vectors of neighbouring elements, stride_vector_bytes apart.
template <class Reader>
void decode_packed_keys(const PackedKeyCache& cache, const CachedRows& rows, RowSpan span, int64_t size,
                        const Tile& tile) {
  const int64_t vector_size = cache.vector_size.signed_value();
  for (int64_t j = span.begin; j < span.end; ++j) {
    float* to = tile.row(j - span.begin);
    const char* from = rows(j);
    for (int64_t d = 0; d < size; d += vector_size, from += cache.stride_vector_bytes) {
      read_elements<Reader>(to + d, from, vector_size);
    }
    for (int64_t d = size; d < tile.size; ++d) to[d] = 0;
  }
}

// Decodes packed values: the elements of a value are stride_row_bytes apart, and those of neighbouring slots are
// contiguous.
template <class Reader>
void decode_packed_values(const PackedValueCache& cache, const CachedRows& rows, RowSpan span, int64_t size,
                          const Tile& tile) {
  for (int64_t j = span.begin; j < span.end;) {
    int64_t count = 1;  // neighbouring slots of one vector
    while (j + count < span.end && rows(j + count) == rows(j) + count * Reader::kBytes) ++count;
    const char* from = rows(j);
    float elements[kTile];
    for (int64_t d = 0; d < size; ++d, from += cache.stride_row_bytes) {
      read_elements<Reader>(elements, from, count);
      for (int64_t i = 0; i < count; ++i) tile.row(j - span.begin + i)[d] = elements[i];
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t d = size; d < tile.size; ++d) tile.row(j - span.begin + i)[d] = 0;
    }
    j += count;
  }
}

}  // namespace
}  // namespace multikv::cpu
