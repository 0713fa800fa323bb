// Describes a block and head of a packed cache (core/cache_view.h) as strips. The same code then serves keys and
// values.
//
// A strip holds one unit for each slot of a group of consecutive slots. The elements of one token are a column of
// units, one unit in each strip of the group:
//
//             slot 0  slot 1  slot 2  ..
//   strip 0   unit    unit    unit
//   strip 1   unit    unit    unit
//   ..
//
//             a unit is                    a group is
//   keys      vector_size elements         all slots of a block
//   values    one element                  vector_size slots
#pragma once

#include "cpu/isa/simd/vec.h"
#include "params/reshape_and_cache_params.h"

namespace multikv::cpu {
namespace {

struct PackedStrips {
  int64_t unit_bytes;
  int64_t slots_per_strip;
  int64_t max_tokens;  // written at a time: enough to fill cache lines, and not too many input streams at once
  int64_t strip_stride_bytes, slot_stride_bytes;
  int64_t group_stride_bytes;  // from strip 0 of a group to strip 0 of the next group; 0: a block has one group
};

inline PackedStrips strips_of_keys(const PackedCache& cache) {
  return {
      .unit_bytes = cache.codec.num_bytes(cache.vector_size.signed_value()),
      .slots_per_strip = cache.blocks.block_size.signed_value(),
      .max_tokens = 16,
      .strip_stride_bytes = cache.stride_vector_bytes,
      .slot_stride_bytes = cache.stride_row_bytes,
      .group_stride_bytes = 0,
  };
}

inline PackedStrips strips_of_values(const PackedCache& cache) {
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

inline PackedStrips strips_of(const PackedKeyCache& cache) { return strips_of_keys(cache); }
inline PackedStrips strips_of(const PackedValueCache& cache) { return strips_of_values(cache); }

}  // namespace
}  // namespace multikv::cpu
