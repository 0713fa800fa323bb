// What the front end hands to a backend for the ops of family rotate.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

struct RotateCachedKeysParams {
  // Read and written. A cache [blocks, block_size, heads, head_size] is a packed cache with one vector in a head:
  // vector_size is head_size, and stride_row_bytes is the distance between slots.
  PackedKeyCache cache;
  Slots slots;                           // of the tokens that move
  Indices old_positions, new_positions;  // [tokens]
  TokenRows cos_sin_cache;  // [num_positions, rotary_size]: a row has rotary_size / 2 cosines, then as many sines
  int64_t num_positions;
  int64_t num_heads, rotary_size;
  int64_t rotary_offset;  // the elements rotary_offset .. rotary_offset + rotary_size - 1 of a head are rotated
  Float table_dtype;      // of cos_sin_cache
  bool is_neox;           // true: elements i and i + rotary_size / 2 are a pair; false: elements 2i and 2i + 1 are

  constexpr const Codec& codec() const { return cache.codec; }
  constexpr int64_t num_pairs() const { return rotary_size / 2; }
  constexpr Work work() const {
    const int64_t bytes = codec().num_bytes(num_heads * rotary_size);
    return {slots.num_tokens, bytes, bytes};
  }
};
static_assert(LaunchParams<RotateCachedKeysParams>);

}  // namespace multikv
