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

struct GatherAndMaybeDequantCacheParams {
  CpGatherCacheParams gather;  // gather.entry is one contiguous row; row_size is an entry's bytes in the cache
  int64_t entry_size;          // elements
  Float dtype;                 // of dst

  constexpr const Codec& codec() const { return gather.cache.codec; }
  constexpr Work work() const {
    return {gather.sequences.num_tokens, codec().num_bytes(entry_size), entry_size * num_bytes(dtype)};
  }
};
static_assert(LaunchParams<GatherAndMaybeDequantCacheParams>);

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
