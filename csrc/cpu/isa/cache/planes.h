// Iterates over the entries of a list of blocks, or of pairs of blocks, in many planes.
#pragma once

#include <concepts>

#include "core/planes.h"

namespace multikv::cpu {
namespace {

// A range of the entries of a list, in one plane.
struct EntryRange {
  int64_t begin, end;
};

// Calls visit(layout, plane, entries) for the items [begin, end). Item i is entry i % num_entries of plane
// i / num_entries; planes are counted over all groups.
template <class Layout, class Item, std::invocable<const Layout&, const Item&, EntryRange> Visit>
void for_each_plane(const PlaneGroups<Layout, Item>& all, int64_t num_entries, int64_t begin, int64_t end,
                    const Visit& visit) {
  int64_t first = 0;  // the first item of the current group
  for (int64_t g = 0; g < all.num_groups && first < end; ++g) {
    const PlaneGroup<Layout, Item>& group = all.groups[g];
    const int64_t last = first + group.num_planes * num_entries;
    while (begin < end && begin < last) {
      const int64_t plane = (begin - first) / num_entries, entry = begin - first - plane * num_entries;
      const int64_t stop = end - begin < num_entries - entry ? entry + end - begin : num_entries;
      visit(group.layout, group.planes[plane], EntryRange{entry, stop});
      begin += stop - entry;
    }
    first = last;
  }
}

}  // namespace
}  // namespace multikv::cpu
