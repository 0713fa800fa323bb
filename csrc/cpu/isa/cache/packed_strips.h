// Packed caches (core/cache_view.h) as strips, which makes keys and values alike.
//
// A strip is contiguous memory with one unit for each of some neighbouring slots. A token's row of elements is a column
// of units, one in each strip of its slots:
//
//                slot 0  slot 1  slot 2  ..                keys                      values
//   strip 0      unit    unit    unit                      unit: one vector          unit: one element
//   strip 1      unit    unit    unit                      slots of a strip: all     slots of a strip: vector_size
//   ..                                                     of a block                neighbours
#pragma once

#include "cpu/isa/simd/vec.h"
#include "params/reshape_and_cache_params.h"

namespace multikv::cpu {
namespace {

struct PackedStrips {
  int64_t unit_bytes;
  int64_t slots_per_strip;
  int64_t max_tokens;  // that a writer takes at a time: whole cache lines of a strip, and few input streams
  int64_t strip_stride_bytes, slot_stride_bytes;
  int64_t group_stride_bytes;  // from the strips of some slots to those of the next slots of the block
};

inline PackedStrips strips_of(const PackedKeyCache& cache) {
  return {
      .unit_bytes = cache.codec.num_bytes(cache.vector_size.signed_value()),
      .slots_per_strip = cache.blocks.block_size.signed_value(),
      .max_tokens = 16,
      .strip_stride_bytes = cache.stride_vector_bytes,
      .slot_stride_bytes = cache.stride_row_bytes,
      .group_stride_bytes = 0,
  };
}

inline PackedStrips strips_of(const PackedValueCache& cache) {
  const int64_t element_bytes = cache.codec.num_bytes(1);
  return {
      .unit_bytes = element_bytes,
      .slots_per_strip = cache.vector_size.signed_value(),
      .max_tokens = kCacheLine / element_bytes,
      .strip_stride_bytes = cache.stride_row_bytes,
      .slot_stride_bytes = element_bytes,
      .group_stride_bytes = cache.stride_vector_bytes,
  };
}

}  // namespace
}  // namespace multikv::cpu
