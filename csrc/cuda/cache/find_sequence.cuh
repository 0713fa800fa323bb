// Finds the sequences that tokens belong to, given the first token of each sequence.
#pragma once

#include "cuda/core/indices.cuh"

namespace multikv::gpu {

// The bounds of sequences: sequence s begins with token values[s] and ends before token values[s + 1].
struct SequenceBounds {
  const Indices& values;
  int64_t count;
};

__device__ inline int popcount(uint32_t mask) { return static_cast<int>(__popc(mask)); }

// The sequence of a token, and the token with which the sequence begins. `sequence` is -1 for a token before all
// sequences. It is at least the number of sequences for a token after all of them.
struct SequenceStart {
  int64_t sequence, begin;
};

// Finds a window: 32 neighbouring bounds that include the last bound at or before token `first`. Returns the index of
// the window's lowest bound. Each step of the search probes 32 bounds, one by each lane. All lanes of the warp must
// call.
__device__ __forceinline__ int64_t find_window(const SequenceBounds& bounds, int64_t first, int lane) {
  int64_t low = 0, high = bounds.count;
  while (high - low > 31) {
    const int64_t step = (high - low + 31) / 32;
    const int64_t probe = low + (lane + 1) * step - 1;
    low += popcount(ballot(probe < high && PrefetchedIndex(bounds.values, probe).value() <= first)) * step;
    high = low + step - 1 < high ? low + step - 1 : high;
  }
  return low > 0 ? low - 1 : 0;
}

// Finds the sequence of a token by a binary search of the bounds from index `next` on. All earlier bounds must be at
// most `token`.
__device__ __forceinline__ SequenceStart search_from(const SequenceBounds& bounds, int64_t next, int64_t token) {
  int64_t end = bounds.count;
  while (next < end) {
    const int64_t middle = (next + end) / 2;
    if (PrefetchedIndex(bounds.values, middle).value() <= token) next = middle + 1;
    else end = middle;
  }
  return {next - 1, PrefetchedIndex(bounds.values, next - 1).value()};
}

// The tokens that the lanes of a warp look up: first, first + 1, ..., first + count - 1. There is at least one.
// Each lane looks up the token first + index. Lanes may have equal indices. Lanes with an index >= count have no token.
struct WarpTokens {
  int64_t first;
  int count, index;
};

// Finds, for each lane of a warp, the last sequence that begins at or before the lane's token. All lanes must call;
// what lanes without a token get means nothing.
__device__ inline SequenceStart sequence_of(const SequenceBounds& bounds, const WarpTokens& tokens, int lane) {
  const int64_t window = find_window(bounds, tokens.first, lane);
  const bool is_bound = window + lane < bounds.count;
  const int64_t bound = is_bound ? PrefetchedIndex(bounds.values, window + lane).value() : 0;

  const int64_t token = tokens.first + tokens.index;
  int count = popcount(ballot(is_bound && bound <= tokens.first));
  if (count !=
      popcount(ballot(is_bound && bound < tokens.first + tokens.count))) {  // the tokens belong to several sequences
    // Each lane counts the window's bounds at or before its token by a binary search. The steps add up to 32.
    count = 0;
#pragma unroll
    for (const int step : {16, 8, 4, 2, 1, 1}) {
      const int next = count + step - 1;
      if (shuffle(bound, next) <= token && window + next < bounds.count) count += step;
    }
  }
  const int64_t begin = shuffle(bound, count > 0 ? count - 1 : 0);
  // If all 32 bounds of the window are at or before the token, later bounds may be as well.
  if (count == 32) return search_from(bounds, window + 32, token);
  return {window + count - 1, begin};
}

}  // namespace multikv::gpu
