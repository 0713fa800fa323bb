#include "cpu/duplicate_slots.h"

#include <algorithm>
#include <vector>

namespace multikv::cpu {
namespace {

bool has_duplicates_by_sorting(const Slots& slots) {
  std::vector<int64_t> sorted;
  sorted.reserve(slots.num_tokens);
  for (int64_t token = 0; token < slots.num_tokens; ++token) {
    if (const int64_t slot = slots.mapping.at(token); slot >= 0) sorted.push_back(slot);
  }
  std::sort(sorted.begin(), sorted.end());
  return std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end();
}

// Marks each slot in a bitmap of `num_words` words. The thread keeps the bitmap for its next call, so the words with
// marks are cleared before the function returns.
bool has_duplicates_by_marking(const Slots& slots, int64_t num_words) {
  thread_local std::vector<uint64_t> marks;
  if (static_cast<int64_t>(marks.size()) < num_words) marks.resize(num_words);
  bool has_duplicate = false;
  int64_t end = 0;
  for (; end < slots.num_tokens && !has_duplicate; ++end) {
    const int64_t slot = slots.mapping.at(end);
    if (slot < 0) continue;
    const uint64_t bit = uint64_t{1} << (slot % 64);
    has_duplicate = (marks[slot / 64] & bit) != 0;
    marks[slot / 64] |= bit;
  }
  for (int64_t token = 0; token < end; ++token) {
    if (const int64_t slot = slots.mapping.at(token); slot >= 0) marks[slot / 64] = 0;
  }
  return has_duplicate;
}

}  // namespace

bool has_duplicate_slots(const Slots& slots, const Blocks& blocks) {
  const int64_t num_words = blocks.num_slots() / 64 + 1;
  // A bitmap of a large cache costs more than sorting a few slots.
  const bool is_sorting_cheaper = num_words > 64 * slots.num_tokens;
  return is_sorting_cheaper ? has_duplicates_by_sorting(slots) : has_duplicates_by_marking(slots, num_words);
}

}  // namespace multikv::cpu
