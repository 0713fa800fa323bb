#include "frontend/check/moves.h"

#include <algorithm>

namespace multikv {

namespace {

void check_bounds(const Call& call, const KeptTokens& kept, const HostIndices& bounds) {
  int64_t previous = 0;
  for (int64_t i = 0; i <= kept.num_sequences; ++i) {
    if (bounds[i] < previous) {
      const std::string_view reason = i == 0 ? "" : " (bounds must not decrease)";
      call.fail_index("keep_offsets", text(i), join({"a bound of at least ", text(previous), reason}), bounds[i]);
    }
    if (bounds[i] > kept.num_elements) {
      call.fail_index("keep_offsets", text(i),
                      join({"a bound of at most ", text(kept.num_elements), " (elements of keep)"}), bounds[i]);
    }
    previous = bounds[i];
  }
}

// The positions that one head of one group keeps; subscript(m) names an element in error messages.
struct KeptRow {
  const HostIndices& keep;
  int64_t row;
  std::string prefix;  // of the subscript: "", "head, " or "group, head, "

  int64_t operator[](int64_t m) const { return keep.at(row, m); }
  std::string subscript(int64_t m) const { return prefix + text(m); }
};

class KeptChecker {
 public:
  KeptChecker(const Call& call, const KeptTokens& kept, const Blocks& blocks)
      : call_(call), kept_(kept), blocks_(blocks), bounds_(call, kept.keep_offsets, 1, kept.num_sequences + 1),
        starts_(call, kept.dst_start, 1, kept.num_sequences),
        table_(call, kept.block_table, kept.num_sequences, kept.blocks_per_sequence) {
    check_bounds(call, kept, bounds_);
    if (!starts_.is_given()) return;
    for (int64_t s = 0; s < kept.num_sequences; ++s) {
      if (starts_[s] < 0) call.fail_index("dst_start", text(s), "a position of at least 0", starts_[s]);
    }
  }

  void check(const KeptRow& row) const {
    for (int64_t s = 0; s < kept_.num_sequences; ++s) {
      const int64_t begin = bounds_[s], start = starts_.is_given() ? starts_[s] : 0;
      for (int64_t m = begin; m < bounds_[s + 1]; ++m) {
        check_position(row, m, static_cast<uint64_t>(start) + (m - begin), m > begin);
        check_block(row, s, m, row[m]);
        check_block(row, s, m, start + (m - begin));
      }
    }
  }

 private:
  // The destination is a uint64_t, because the sum of two non-negative int64_t may exceed the largest int64_t.
  void check_position(const KeptRow& row, int64_t m, uint64_t destination, bool has_previous) const {
    if (row[m] < 0 || static_cast<uint64_t>(row[m]) < destination) {
      constexpr uint64_t kMost = INT64_MAX;
      call_.fail_index("keep", row.subscript(m),
                       join({"a position of at least ", text(static_cast<int64_t>(std::min(destination, kMost))),
                             " (its destination)"}),
                       row[m]);
    }
    if (has_previous && row[m] <= row[m - 1]) {
      call_.fail_index("keep", row.subscript(m),
                       join({"a position above ", text(row[m - 1]), " (positions must increase)"}), row[m]);
    }
  }

  void check_block(const KeptRow& row, int64_t s, int64_t m, int64_t position) const {
    const int64_t column = position / blocks_.block_size.signed_value();
    if (column >= kept_.blocks_per_sequence) {
      const int64_t end = kept_.blocks_per_sequence * blocks_.block_size.signed_value();
      call_.fail_index("keep", row.subscript(m), join({"a position below ", text(end), " (width of block_table)"}),
                       position);
    }
    const int64_t block = table_.at(s, column);
    if (block >= 0 && block < blocks_.num_blocks) return;
    call_.fail_index("block_table", join({text(s), ", ", text(column)}), range_text("block", blocks_.num_blocks),
                     block);
  }

  const Call& call_;
  const KeptTokens& kept_;
  const Blocks& blocks_;
  HostIndices bounds_, starts_, table_;
};

}  // namespace

void check_kept_tokens(const Call& call, const KeptTokens& kept, const Blocks& blocks, int64_t num_heads,
                       int64_t num_groups) {
  if (!checks_indices(call)) return;
  const KeptChecker checker(call, kept, blocks);
  const int64_t num_rows = kept.is_per_head ? num_heads : 1;
  for (int64_t group = 0; group < num_groups; ++group) {
    const HostIndices keep(call, kept.keep_of_group(group), num_rows, kept.num_elements);
    for (int64_t row = 0; row < num_rows; ++row) {
      const std::string head = kept.is_per_head ? join({text(row), ", "}) : "";
      checker.check({keep, row, kept.is_per_group ? join({text(group), ", ", head}) : head});
    }
  }
}

}  // namespace multikv
