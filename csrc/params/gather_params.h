// What the front end hands to a backend for the ops of family gather.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/sequences.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

struct CpGatherCacheParams {
  EntryCache cache;
  TokenRows dst;      // [tokens, entry]; written
  StridedRows entry;  // how one entry is copied, in bytes: from an entry of the cache to a row of dst
  Sequences sequences;

  // entry.num_elements() is a number of bytes, because `entry` is in bytes.
  constexpr Work work() const { return {sequences.num_tokens, entry.num_elements(), entry.num_elements()}; }
};
static_assert(LaunchParams<CpGatherCacheParams>);

// What a gather of heads copies or dequantises: all keys or all values of a token, or its whole entry as one head.
// Heads that are contiguous on both sides, and share a scale, are one head here.
struct HeadGather {
  // Every layout is described as a packed one. A cache [blocks, block_size, heads, head_size] is a packed key cache
  // whose vectors hold whole heads, and whose rows are slots.
  PackedCache cache;
  bool packs_slots;  // the cache has the layout of packed values: a vector holds one element of neighbouring slots
  TokenHeads dst;    // written
  int64_t num_heads, head_size;

  constexpr int64_t num_elements() const { return num_heads * head_size; }
};

struct GatherAndMaybeDequantCacheParams {
  HeadGather entry;
  Sequences sequences;
  Float dtype;  // of dst

  constexpr const Codec& codec() const { return entry.cache.codec; }
  constexpr Work work() const {
    const int64_t elements = entry.num_elements();
    return {sequences.num_tokens, codec().num_bytes(elements), elements * num_bytes(dtype)};
  }
};
static_assert(LaunchParams<GatherAndMaybeDequantCacheParams>);

struct GatherKvCacheParams {
  // Keys and values of packed caches have equally many heads. One of key and value may be empty; its data is then null.
  HeadGather key, value;
  Sequences sequences;
  Float dtype;  // of key and value

  constexpr const Codec& codec() const { return key.cache.codec; }
  constexpr Work work() const {
    const int64_t elements = key.num_elements() + value.num_elements();
    return {sequences.num_tokens, codec().num_bytes(elements), elements * num_bytes(dtype)};
  }
};
static_assert(LaunchParams<GatherKvCacheParams>);

struct CpGatherAndUpconvertFp8KvCacheParams {
  // The members are in the order in which the GPU kernel reads them: the sequences, then the row ids and host_cache,
  // then the cache, and last dst.
  Sequences sequences;  // sequences.blocks describes the logical blocks: those that block_table refers to
  // If host_row_ids is not given, logical blocks are the blocks of `cache`. Otherwise the row ids say where the entry
  // of each slot of a logical block lies (RowIds in frontend/check/sequence_bounds.h).
  const char* host_cache;  // [host_rows, DsMlaEntry]
  int64_t host_stride_row_bytes, num_host_rows;
  Indices host_row_ids, device_row_ids;  // [logical blocks * block_size]
  EntryCache cache;                      // [device_blocks, block_size, DsMlaEntry]
  TokenRows dst;                         // [tokens, 576], bfloat16; written

  constexpr Work work() const {
    return {sequences.num_tokens, DsMlaEntry::kBytes, (DsMlaEntry::kLatentSize + DsMlaEntry::kRopeSize) * 2};
  }
};
static_assert(LaunchParams<CpGatherAndUpconvertFp8KvCacheParams>);

}  // namespace multikv
