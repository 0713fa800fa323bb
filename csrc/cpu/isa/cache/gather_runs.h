// Finds the cache entry of each output row of a gather. Consecutive rows with consecutive entries form a run.
#pragma once

#include <concepts>

#include "core/sequences.h"

namespace multikv::cpu {
namespace {

// Returns the last sequence that begins at or before an output row, or -1 if no sequence does.
inline int64_t sequence_of(const Sequences& sequences, int64_t row) {
  int64_t low = 0, high = sequences.num_sequences;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (sequences.cu_seq_lens.at(middle) <= row) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// The output rows row, row + 1, ..., whose entries are consecutive in one block. The entry of the first row is at `at`.
struct GatherRun {
  int64_t row, count;
  BlockOffset at;
};

// Walks over the runs of the output rows [begin, end). Rows that belong to no sequence, and rows whose block would lie
// beyond the last column of the block table, are in no run.
class GatherRunWalker {
 public:
  GatherRunWalker(const Sequences& sequences, int64_t begin, int64_t end)
      : sequences_(sequences), row_(begin), end_(end), sequence_end_(begin),
        sequence_(sequence_of(sequences, begin) - 1) {
    // next() begins with the sequence after sequence_, so sequence_ is one before the sequence of row `begin`. If no
    // sequence begins at or before that row, sequence_of() is -1, and next() begins with sequence 0.
    if (sequence_ < -1) sequence_ = -1;
  }

  // Returns false after the last run.
  bool next(GatherRun& run) {
    while (row_ >= sequence_end_ || column_ >= sequences_.blocks_per_sequence) {
      if (++sequence_ >= sequences_.num_sequences || row_ >= end_) return false;
      enter_sequence();
    }
    const int64_t left = sequences_.blocks.block_size.signed_value() - offset_;
    run = {row_,
           sequence_end_ - row_ < left ? sequence_end_ - row_ : left,
           {sequences_.block_table.at(sequence_, column_), offset_}};
    row_ += run.count;
    ++column_;
    offset_ = 0;
    return true;
  }

 private:
  void enter_sequence() {
    const int64_t first = sequences_.cu_seq_lens.at(sequence_);
    const int64_t next_first =
        sequence_ + 1 < sequences_.num_bounds ? sequences_.cu_seq_lens.at(sequence_ + 1) : sequences_.num_tokens;
    sequence_end_ = next_first < end_ ? next_first : end_;
    if (row_ < first) row_ = first;
    if (row_ >= sequence_end_) return;
    // Neither the start nor the row's distance from the first row is negative, so their sum fits a uint64_t.
    const uint64_t start =
        sequences_.seq_starts.is_given() ? static_cast<uint64_t>(sequences_.seq_starts.at(sequence_)) : 0;
    const uint64_t position = start + static_cast<uint64_t>(row_ - first);
    column_ = static_cast<int64_t>(position / sequences_.blocks.block_size.value);
    offset_ = static_cast<int64_t>(position % sequences_.blocks.block_size.value);
  }

  const Sequences& sequences_;
  int64_t row_, end_, sequence_end_;  // sequence_end_: the row at which the current sequence ends
  int64_t sequence_;
  int64_t column_ = 0, offset_ = 0;  // the block table's column of row_, and the offset of its entry in the block
};

// Calls body(run, next) for each run. `next` is the run after it, or nullptr.
template <std::invocable<const GatherRun&, const GatherRun*> Body>
inline void for_each_run(const Sequences& sequences, int64_t begin, int64_t end, const Body& body) {
  GatherRunWalker runs(sequences, begin, end);
  GatherRun run, next;
  for (bool has_more = runs.next(run); has_more; run = next) {
    has_more = runs.next(next);
    body(run, has_more ? &next : nullptr);
  }
}

}  // namespace
}  // namespace multikv::cpu
