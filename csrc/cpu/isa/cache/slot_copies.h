// Copies tokens from slots to slots, a plane at a time.
#pragma once

#include <concepts>

#include "cpu/isa/cache/strided.h"
#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/simd/copy.h"
#include "params/moves_params.h"

namespace multikv::cpu {
namespace {

// Calls body(group, plane, from, to) for each plane that has some of the items [begin, end). Each plane has
// items_per_plane items, and items are counted over all planes. [from, to) are the same items, counted from the first
// item of the plane.
template <class Group, class Body>
inline void for_each_plane(const Group* groups, int64_t items_per_plane, int64_t begin, int64_t end, const Body& body) {
  int64_t first = 0;  // the first item of the plane
  for (const Group* group = groups; first < end; ++group) {
    for (int64_t p = 0; p < group->num_planes && first < end; ++p, first += items_per_plane) {
      if (first + items_per_plane <= begin) continue;
      const int64_t from = begin > first ? begin - first : 0;
      body(*group, group->planes[p], from, end - first < items_per_plane ? end - first : items_per_plane);
    }
  }
}

// Walks over the rows of all units [begin, end) that have slots. slots_of(unit) returns the SlotPair of a unit; if one
// of its slots is negative, the unit is skipped.
template <std::invocable<int64_t> SlotsOf>
class UnitRows {
 public:
  UnitRows(const PlaneCopies& copies, const CopyLayout& layout, const StridedRows& rows, const PlanePair& plane,
           const SlotsOf& slots_of, int64_t begin, int64_t end)
      : copies_(copies), layout_(layout), rows_(rows), plane_(plane), slots_of_(slots_of), walker_(rows, 0),
        unit_(begin - 1), end_(end) {
    enter_next_unit();
  }

  bool is_done() const { return unit_ >= end_; }
  const char* src() const { return src_ + walker_.src(); }
  char* dst() const { return dst_ + walker_.dst(); }

  void next() {
    walker_.next();  // after the last row comes the first
    if (++row_ == rows_.num_rows) enter_next_unit();
  }

 private:
  void enter_next_unit() {
    while (++unit_ < end_) {
      const SlotPair slots = slots_of_(unit_);
      if (slots.src < 0 || slots.dst < 0) continue;
      src_ = plane_.src + layout_.src.offset_of(split_slot(copies_.src_blocks, slots.src));
      dst_ = plane_.dst + layout_.dst.offset_of(split_slot(copies_.dst_blocks, slots.dst));
      row_ = 0;
      return;
    }
  }

  const PlaneCopies& copies_;
  const CopyLayout& layout_;
  const StridedRows& rows_;
  const PlanePair& plane_;
  const SlotsOf& slots_of_;
  RowWalker walker_;
  int64_t unit_, end_, row_ = 0;
  const char* src_ = nullptr;
  char* dst_ = nullptr;
};

}  // namespace
}  // namespace multikv::cpu
