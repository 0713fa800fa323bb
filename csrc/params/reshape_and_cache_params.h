// What the front end hands to a backend for the ops of family reshape_and_cache.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// The keys or the values, [tokens, heads, head_size], and the cache that they are written to.
struct FlashWrite {
  TokenHeads source;
  FlashCache cache;
  int64_t head_size;
};

struct ReshapeAndCacheFlashParams {
  FlashWrite key, value;
  Slots slots;
  int64_t num_heads;
  Float dtype;

  constexpr const Codec& codec() const { return key.cache.codec; }
  constexpr const Blocks& blocks() const { return key.cache.blocks; }
  constexpr Work work() const {
    const int64_t elements = num_heads * (key.head_size + value.head_size);
    return {slots.num_tokens, elements * num_bytes(dtype), codec().num_bytes(elements)};
  }
};
static_assert(LaunchParams<ReshapeAndCacheFlashParams>);

struct PackedKeyWrite {
  TokenHeads source;
  PackedKeyCache cache;
};

struct PackedValueWrite {
  TokenHeads source;
  PackedValueCache cache;
};

struct ReshapeAndCacheParams {
  PackedKeyWrite key;
  PackedValueWrite value;
  Slots slots;
  int64_t num_heads, head_size;
  Float dtype;

  constexpr const Codec& codec() const { return key.cache.codec; }
  constexpr const Blocks& blocks() const { return key.cache.blocks; }
  constexpr Work work() const {
    const int64_t elements = 2 * num_heads * head_size;
    return {slots.num_tokens, elements * num_bytes(dtype), codec().num_bytes(elements)};
  }
};
static_assert(LaunchParams<ReshapeAndCacheParams>);

}  // namespace multikv
