// How the CPU cuts attention into pieces of work.
//
// A job is the attention of some query rows of one sequence, for some kv heads. Its keys are cut into granules at the
// absolute positions 0, kGranule, 2 * kGranule, ... Each granule is computed from scratch, and the results are joined
// in ascending order, so a job may be cut between any two granules without a change of results.
#pragma once

#include "params/attention_params.h"

namespace multikv::cpu {

struct AttentionJob {
  static constexpr int64_t kGranule = 256;  // keys; a power of two

  int64_t sequence;
  int64_t length;          // keys of the sequence
  int64_t first_row;       // the query row of the job's first token
  int64_t first_position;  // the position of that token; may be negative, and then the token sees nothing
  int64_t num_tokens;
  int64_t mask_base;                   // the key that bit 0 of a query mask stands for; may be negative
  int64_t first_head, num_heads;       // kv heads
  int64_t begin_granule, end_granule;  // the granules that may have visible keys; at least one granule

  int64_t num_granules() const { return end_granule - begin_granule; }
};

// The sizes of a job's arrays. Rows of floats are padded to whole groups of lanes.
struct AttentionSizes {
  static constexpr int64_t kLanes = 16;

  int64_t rows;        // query rows times query heads of a kv head; row r is token r / group, query head r % group
  int64_t group;       // query heads of a kv head
  int64_t key_size;    // padded head size of keys
  int64_t value_size;  // padded head size of values

  static constexpr int64_t padded(int64_t size) { return (size + kLanes - 1) / kLanes * kLanes; }
  static AttentionSizes of(const PagedAttentionParams& p, const AttentionJob& job) {
    const int64_t group = p.heads_per_kv_head();
    return {job.num_tokens * group, group, padded(p.head_size), padded(p.value_size)};
  }

  // A partial result is an array [kv heads, rows, partial_size()]: the sums of the values, their padding up to a whole
  // number of lanes, the largest score, and the sum of the weights.
  int64_t partial_size() const { return value_size + kLanes; }
  int64_t partial_floats(int64_t num_heads) const { return num_heads * rows * partial_size(); }
};

// The granules [begin, end) of a job. If they are all granules of the job, the result goes to out and lse. Otherwise it
// goes to `partials`: one partial result of all granules if begin == job.begin_granule, else one for each granule.
struct AttentionPiece {
  const PagedAttentionParams* params;
  AttentionJob job;
  int64_t begin, end;
  float* partials;
  char* scratch;  // AttentionScratch::num_bytes bytes, aligned to a cache line

  bool is_first() const { return begin == job.begin_granule; }
  bool is_whole() const { return is_first() && end == job.end_granule; }
  int64_t num_partials() const { return is_whole() ? 0 : is_first() ? 1 : end - begin; }
};

// The pieces of a job that was cut, in ascending order.
struct AttentionJoin {
  const PagedAttentionParams* params;
  AttentionJob job;
  const AttentionPiece* pieces;
  int64_t num_pieces;
};

// The memory that a kernel needs beside its arguments, as offsets from the start of AttentionPiece::scratch.
struct AttentionScratch {
  static constexpr int64_t kTile = 32;  // keys or values that are decoded at a time
  int64_t query, state, partial, scores, tile, keys, values, num_bytes;

  static AttentionScratch of(const PagedAttentionParams& p, const AttentionJob& job) {
    const AttentionSizes sizes = AttentionSizes::of(p, job);
    AttentionScratch scratch{};
    const auto take = [&](int64_t bytes) {
      const int64_t at = scratch.num_bytes;
      scratch.num_bytes += (bytes + 63) / 64 * 64;
      return at;
    };
    constexpr int64_t kFloat = sizeof(float), kPointer = sizeof(void*);
    scratch.query = take(job.num_heads * sizes.rows * sizes.key_size * kFloat);
    scratch.state = take(sizes.partial_floats(job.num_heads) * kFloat);
    scratch.partial = take(sizes.partial_floats(1) * kFloat);
    scratch.scores = take(sizes.rows * AttentionJob::kGranule * kFloat);
    scratch.tile = take(kTile * (sizes.key_size > sizes.value_size ? sizes.key_size : sizes.value_size) * kFloat);
    scratch.keys = take(AttentionJob::kGranule * kPointer);
    scratch.values = take(AttentionJob::kGranule * kPointer);
    return scratch;
  }
};

}  // namespace multikv::cpu
