#include "cuda/moves/overlapping_pairs.h"

#include <algorithm>
#include <unordered_map>

namespace multikv::gpu {
namespace {

// Divides pairs of offsets.
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

  // Adds one cycle. A cycle that is longer than a batch is divided into shorter cycles, one for each batch. In the
  // picture, a <- b copies slot b to slot a. The first batch copies slot a to slot c, from where the second batch
  // copies it to slot e:
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

BlockOffset split(const Blocks& blocks, int64_t slot) {
  const int64_t size = blocks.block_size.signed_value();
  return {slot / size, slot % size};
}

// The memory of a plane.
struct Range {
  uintptr_t begin, end;
  bool is_dst;
};

// The range of a plane that begins at `data`, whose units have the extent of `unit_bytes` bytes.
Range range_of(const char* data, const Blocks& blocks, const SlotStrides& strides, int64_t unit_bytes, bool is_dst) {
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const int64_t last = strides.offset_of({blocks.num_blocks - 1, blocks.block_size.signed_value() - 1});
  return {begin, begin + last + unit_bytes, is_dst};
}

int64_t extent(const StridedRows& unit, const int64_t* strides) {
  int64_t bytes = unit.row_size;
  for (int d = 0; d < unit.num_dims; ++d) bytes += (unit.size[d] - 1) * strides[d];
  return bytes;
}

}  // namespace

SlotPair PoolSlots::offsets(const SlotPair& slots) const {
  return {group.layout.src.offset_of(split(copies.src_blocks, slots.src)),
          group.planes[0].distance() + group.layout.dst.offset_of(split(copies.dst_blocks, slots.dst))};
}

bool are_apart(const PlaneCopies& copies) {
  std::vector<Range> ranges;
  for (int64_t i = 0; i < copies.planes.num_groups; ++i) {
    const auto& [layout, planes, num_planes] = copies.planes.groups[i];
    const int64_t src_bytes = extent(layout.unit, layout.unit.src_stride);
    const int64_t dst_bytes = extent(layout.unit, layout.unit.dst_stride);
    for (int64_t p = 0; p < num_planes; ++p) {
      ranges.push_back(range_of(planes[p].src, copies.src_blocks, layout.src, src_bytes, false));
      ranges.push_back(range_of(planes[p].dst, copies.dst_blocks, layout.dst, dst_bytes, true));
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
  uintptr_t src_end = 0, dst_end = 0;
  for (const Range& range : ranges) {
    if (range.begin < (range.is_dst ? src_end : dst_end)) return false;
    uintptr_t& end = range.is_dst ? dst_end : src_end;
    end = std::max(end, range.end);
  }
  return true;
}

PairBatches divide_overlapping(const std::vector<SlotPair>& pairs, const PoolSlots& pool, int64_t capacity) {
  std::unordered_map<int64_t, int64_t> src_slots, dst_slots;  // by their offsets
  std::vector<SlotPair> offsets;
  offsets.reserve(pairs.size());
  for (const SlotPair& pair : pairs) {
    const SlotPair at = offsets.emplace_back(pool.offsets(pair));
    src_slots[at.src] = pair.src;
    dst_slots[at.dst] = pair.dst;
  }
  PairBatches batches = Divider(offsets, capacity).divide();
  for (SlotPair& pair : batches.pairs) pair = {src_slots[pair.src], dst_slots[pair.dst]};
  return batches;
}

}  // namespace multikv::gpu
