// What the front end hands to a backend for the ops of family indexer.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/sequences.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

struct IndexerKQuantAndCacheParams {
  TokenRows k;  // [tokens, head_size]
  IndexerCache cache;
  int64_t head_size, quant_block_size;
  Slots slots;
  Float dtype;

  constexpr const Codec& codec() const { return cache.codec; }
  constexpr const Blocks& blocks() const { return cache.blocks; }
  constexpr Work work() const {
    return {slots.num_tokens, head_size * num_bytes(dtype), cache.code_bytes + cache.scale_bytes};
  }
};
static_assert(LaunchParams<IndexerKQuantAndCacheParams>);

struct CpGatherIndexerKQuantCacheParams {
  IndexerCache cache;
  TokenRows dst_k;      // [tokens, code bytes]; written
  TokenRows dst_scale;  // [tokens, scale bytes]; written
  Sequences sequences;

  constexpr Work work() const {
    const int64_t bytes = cache.code_bytes + cache.scale_bytes;
    return {sequences.num_tokens, bytes, bytes};
  }
};
static_assert(LaunchParams<CpGatherIndexerKQuantCacheParams>);

}  // namespace multikv
