// What the lengths on the device say: the keys of a sequence, its query rows, and what each row sees.
#pragma once

#include "cuda/attention/problem.h"
#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

__device__ inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

// Returns x / divisor for x >= 0 and a divisor below 2^32, in few instructions.
__device__ inline int small_quotient(int x, const Divisor& divisor) {
  const auto low = static_cast<uint32_t>(x), value = static_cast<uint32_t>(divisor.value);
  const uint32_t estimate = high_product(low, static_cast<uint32_t>(divisor.reciprocal >> 32));
  return static_cast<int>(estimate + (low - estimate * value >= value));
}

// Returns x / y for x, y >= 0. The compiler's 64-bit division is long.
__device__ inline int64_t divide(int64_t x, int64_t y) {
  if ((x | y) >> 32 == 0) return static_cast<uint32_t>(x) / static_cast<uint32_t>(y);
  return x / y;
}

// A half-open range of key positions or of granules.
struct Range {
  int begin, end;
  __device__ int size() const { return end > begin ? end - begin : 0; }
};
__device__ inline Range intersection(Range a, Range b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }
__device__ inline Range granules_of(Range keys) {
  return keys.size() == 0 ? Range{0, 0} : Range{keys.begin / kGranule, (keys.end + kGranule - 1) / kGranule};
}

// One sequence. A row is a query token and one of the query heads of a kv head: row = token * group + head.
struct Sequence {
  int64_t first_token;  // a row of query
  int num_tokens;       // query tokens that are computed
  int num_keys;         // keys that may be visible
  int query_position;   // the position of the first query token; negative if there are fewer keys than query tokens

  __device__ int num_rows(const AttentionProblem& p) const { return num_tokens * static_cast<int>(p.group.value); }
};

__device__ inline Sequence sequence_of(const AttentionProblem& p, int64_t index) {
  const AttentionSequences& all = p.sequences;
  const int64_t length = clamp(all.seq_lens.at(index), 0, INT32_MAX);
  int64_t begin = index, end = index + 1;
  if (all.cu_query_lens.is_given()) {
    begin = clamp(all.cu_query_lens.at(index), 0, all.num_rows);
    end = clamp(all.cu_query_lens.at(index + 1), begin, all.num_rows);
  }
  const int64_t table_keys = min(all.blocks_per_sequence * p.blocks.block_size.signed_value(), all.max_seq_len);
  return {begin, static_cast<int>(min(end - begin, all.max_query_len)), static_cast<int>(min(length, table_keys)),
          static_cast<int>(length - (end - begin))};
}

// Which keys a query token sees: those of `keys`. With a query mask, key mask_begin + i is seen only if bit i of the
// mask is set, too.
struct Visible {
  Range keys;
  int position;
  int mask_begin;
  uint64_t mask;

  __device__ bool sees(int key) const {
    if (key < keys.begin || key >= keys.end) return false;
    if (key < mask_begin) return true;
    const int bit = key - mask_begin;
    return bit < 64 && (mask >> bit & 1) != 0;
  }
};

__device__ inline Visible visible_to(const AttentionProblem& p, const Sequence& sequence, int token) {
  const AttentionOptions& options = p.options;
  const int position = sequence.query_position + token;
  Visible visible = {{0, sequence.num_keys}, position, INT32_MAX, 0};
  if (options.window_left >= 0) {
    visible.keys.begin = static_cast<int>(clamp(position - options.window_left, 0, sequence.num_keys));
  }
  if (options.query_mask != nullptr) {
    visible.mask_begin = sequence.query_position;
    visible.mask = static_cast<uint64_t>(options.query_mask[sequence.first_token + token]);
  } else if (options.is_causal) {
    visible.keys.end = min(sequence.num_keys, position + 1);
  }
  if (position < 0) visible.keys.end = 0;
  return visible;
}

// Some neighbouring query tokens of a sequence: the keys that any of them may see, and those that all of them see.
struct TokenGroup {
  Range any, all;
};

__device__ inline TokenGroup visible_to(const AttentionProblem& p, const Sequence& sequence, int first, int last) {
  const int first_position = sequence.query_position + first, last_position = sequence.query_position + last;
  TokenGroup group = {{0, sequence.num_keys}, {0, sequence.num_keys}};
  if (p.options.window_left >= 0) {
    group.any.begin = static_cast<int>(clamp(first_position - p.options.window_left, 0, sequence.num_keys));
    group.all.begin = static_cast<int>(clamp(last_position - p.options.window_left, 0, sequence.num_keys));
  }
  if (p.options.query_mask != nullptr) {
    group.all.end = min(sequence.num_keys, sequence.query_position);
  } else if (p.options.is_causal) {
    group.any.end = min(sequence.num_keys, last_position + 1);
    group.all.end = min(sequence.num_keys, first_position + 1);
  }
  if (last_position < 0) group.any.end = 0;
  if (first_position < 0) group.all.end = 0;
  return group;
}

}  // namespace multikv::gpu
