// Which entries of a cache the rows of a gather take.
#pragma once

#include "params/params.h"

namespace multikv::cpu {
namespace {

// The last sequence that begins at or before the row; -1 if none does.
inline int64_t sequence_of(const Sequences& q, int64_t row) {
  int64_t low = 0, high = q.num_sequences;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (q.cu_seq_lens.at(middle) <= row) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// Rows whose entries follow each other in a block.
struct Run {
  int64_t row, count, block, offset;
};

// The runs of rows [begin, end). Rows of no sequence, and those whose logical block lies past the table's width, are
// in none.
class RunWalker {
 public:
  RunWalker(const Sequences& q, int64_t begin, int64_t end)
      : q_(q), row_(begin), end_(end), stop_(begin), s_(sequence_of(q, begin) - 1) {
    if (s_ < -1) s_ = -1;
  }

  // False: there are no more.
  bool next(Run& run) {
    while (row_ >= stop_ || block_ >= q_.blocks_per_sequence) {
      if (++s_ >= q_.num_sequences || row_ >= end_) return false;
      enter_sequence();
    }
    const auto block_size = static_cast<int64_t>(q_.block_size.value);
    const int64_t left = block_size - offset_;
    run = {row_, stop_ - row_ < left ? stop_ - row_ : left, q_.block_table.at(s_, block_), offset_};
    row_ += run.count;
    ++block_;
    offset_ = 0;
    return true;
  }

 private:
  void enter_sequence() {
    const int64_t first = q_.cu_seq_lens.at(s_);
    const int64_t sequence_end = s_ + 1 < q_.num_bounds ? q_.cu_seq_lens.at(s_ + 1) : q_.num_tokens;
    stop_ = sequence_end < end_ ? sequence_end : end_;
    if (row_ < first) row_ = first;
    if (row_ >= stop_) return;
    // The sum of two numbers that are not negative fits an unsigned one.
    const uint64_t start = q_.seq_starts.data == nullptr ? 0 : static_cast<uint64_t>(q_.seq_starts.at(s_));
    const uint64_t position = start + static_cast<uint64_t>(row_ - first);
    block_ = static_cast<int64_t>(position / q_.block_size.value);
    offset_ = static_cast<int64_t>(position % q_.block_size.value);
  }

  const Sequences& q_;
  int64_t row_, end_, stop_;  // the sequence's rows end at stop_
  int64_t s_, block_ = 0, offset_ = 0;
};

// Calls body(run, next) for each of them; next: the one after it, or nullptr.
template <class Body>
inline void for_each_run(const Sequences& q, int64_t begin, int64_t end, const Body& body) {
  RunWalker runs(q, begin, end);
  Run run, next;
  for (bool more = runs.next(run); more; run = next) {
    more = runs.next(next);
    body(run, more ? &next : nullptr);
  }
}

}  // namespace
}  // namespace multikv::cpu
