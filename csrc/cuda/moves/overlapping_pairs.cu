#include "cuda/moves/overlapping_pairs.h"

#include <unordered_map>

namespace multikv::gpu {
namespace {

class Divider {
 public:
  Divider(const std::vector<SlotPair>& pairs, int64_t capacity) : capacity_(capacity) {
    for (const SlotPair& pair : pairs) source_of_[pair.dst] = pair.src;
    std::erase_if(source_of_, [](const auto& entry) { return entry.first == entry.second; });
    for (const auto& [dst, src] : source_of_) ++num_readers_[src];
  }

  PairBatches divide() {
    add_chains();
    while (!source_of_.empty()) add_cycle();
    end_batch();
    return std::move(batches_);
  }

 private:
  // Adds the pairs that are in no cycle. A pair is added when no other pair that is left reads the slot that it writes,
  // so that the batches may end anywhere.
  void add_chains() {
    std::vector<int64_t> unread;  // slots that are written, and that no pair that is left reads
    for (const auto& [dst, src] : source_of_) {
      if (num_readers_.find(dst) == num_readers_.end()) unread.push_back(dst);
    }
    while (!unread.empty()) {
      const int64_t dst = unread.back(), src = source_of_[dst];
      unread.pop_back();
      add({src, dst});
      source_of_.erase(dst);
      if (--num_readers_[src] == 0 && source_of_.count(src) != 0) unread.push_back(src);
    }
  }

  // Adds one cycle. A cycle that is longer than a batch becomes several, which share a slot: after the first, the slot
  // c holds what slot a held.
  //
  //   a <- b <- c <- d <- e <- a     is     a <- b <- c <- a, then c <- d <- e <- c
  void add_cycle() {
    std::vector<int64_t> slots;
    const int64_t first = source_of_.begin()->first;
    for (int64_t slot = first;;) {
      slots.push_back(slot);
      const auto entry = source_of_.find(slot);
      slot = entry->second;
      source_of_.erase(entry);
      if (slot == first) break;
    }
    const auto count = static_cast<int64_t>(slots.size());
    if (size_of_batch() + count > capacity_) end_batch();
    for (int64_t begin = 0; begin + 1 < count; begin += capacity_ - 1) {
      const int64_t last = begin + capacity_ - 1 < count - 1 ? begin + capacity_ - 1 : count - 1;
      if (begin != 0) end_batch();
      for (int64_t i = begin; i < last; ++i) add({slots[i + 1], slots[i]});
      add({slots[begin], slots[last]});
    }
  }

  int64_t size_of_batch() const {
    return static_cast<int64_t>(batches_.pairs.size()) - (batches_.ends.empty() ? 0 : batches_.ends.back());
  }
  void add(const SlotPair& pair) {
    if (size_of_batch() == capacity_) end_batch();
    batches_.pairs.push_back(pair);
  }
  void end_batch() {
    if (size_of_batch() != 0) batches_.ends.push_back(static_cast<int64_t>(batches_.pairs.size()));
  }

  int64_t capacity_;
  std::unordered_map<int64_t, int64_t> source_of_;    // the pairs that are left, by the slot that is written
  std::unordered_map<int64_t, int64_t> num_readers_;  // of a slot, among these pairs
  PairBatches batches_;
};

}  // namespace

PairBatches divide_overlapping(const std::vector<SlotPair>& pairs, int64_t capacity) {
  return Divider(pairs, capacity).divide();
}

}  // namespace multikv::gpu
