// Checks of lists of planes (core/planes.h), and of the lists of blocks or slots that go with them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/planes.h"
#include "frontend/check/indices.h"
#include "frontend/check/shapes.h"

namespace multikv {

// Returns the name of a plane for error messages: "caches[3]".
inline std::string plane_name(std::string_view argument, int64_t index) {
  return join({argument, "[", text(index), "]"});
}

// What the planes of a list must have in common, besides their device and their number of blocks.
struct PlanesRule {
  int64_t min_dim = 2;
  bool may_have_more_dims = true;   // than min_dim
  bool has_one_block_size = false;  // whether all planes have the same size of dimension 1
  bool has_one_entry = false;       // whether all planes have the same sizes after dimension 1, and one element size
  bool is_written = false;
};

// Checks plane `index` of a list, whose plane 0 is `first`, except for its device.
void check_plane_shape(const Call& call, std::string_view argument, int64_t index, const Tensor& plane,
                       const Tensor& first, const PlanesRule& rule);
// Fails if plane `index` is None, or is not on the device of the call.
void check_plane_device(Call& call, std::string_view argument, int64_t index, const Tensor& plane);
// Fails if a list has no planes.
void check_num_planes(const Call& call, std::string_view argument, int64_t num_planes);

// Calls the three checks above for all planes of a list.
template <class Item>
void check_planes(Call& call, std::string_view argument, const ListOf<Item>& planes, const PlanesRule& rule) {
  check_num_planes(call, argument, planes.size());
  for (int64_t i = 0; i < planes.size(); ++i) check_plane_device(call, argument, i, planes[i]);
  for (int64_t i = 0; i < planes.size(); ++i) check_plane_shape(call, argument, i, planes[i], planes[0], rule);
}

// Return the address of plane `index`: data() or mutable_data() of check/shapes.h.
inline char* plane_data(const Call& call, std::string_view argument, int64_t index, const Tensor& plane) {
  return data(call, plane_name(argument, index), plane);
}
inline char* plane_data(const Call& call, std::string_view argument, int64_t index, const MutableTensor& plane) {
  return mutable_data(call, plane_name(argument, index), plane);
}

// Collects planes by their layouts. Layouts are compared by ==; a model has few different ones. A thread reuses the
// memory of its collector: see clear().
template <class Layout, class Item = Plane>
class PlaneCollector {
 public:
  // Forgets all planes. The result of groups() is no longer valid.
  void clear() { num_groups_ = 0; }

  void add(const Layout& layout, const Item& plane) {
    size_t group = num_groups_;
    while (group > 0 && !(groups_[group - 1].layout == layout)) --group;
    if (group == 0) group = new_group(layout);
    planes_[group - 1].push_back(plane);
  }

  PlaneGroups<Layout, Item> groups() {
    int64_t num_planes = 0;
    for (size_t i = 0; i < num_groups_; ++i) {
      groups_[i].planes = planes_[i].data();
      groups_[i].num_planes = static_cast<int64_t>(planes_[i].size());
      num_planes += groups_[i].num_planes;
    }
    return {groups_.data(), static_cast<int64_t>(num_groups_), num_planes};
  }

 private:
  // Returns the number of groups, of which the new one is the last.
  size_t new_group(const Layout& layout) {
    if (num_groups_ == groups_.size()) {
      groups_.emplace_back();
      planes_.emplace_back();
    }
    groups_[num_groups_].layout = layout;
    planes_[num_groups_].clear();
    return ++num_groups_;
  }

  std::vector<PlaneGroup<Layout, Item>> groups_;
  std::vector<std::vector<Item>> planes_;  // of each group
  size_t num_groups_ = 0;
};

// The lists of blocks or slots of a call. All of them are on the device of the call, or all of them are on the CPU.
class IndexLists {
 public:
  // The planes, which determine the device of the call, have been checked.
  explicit IndexLists(Call& call) : call_(call) {}

  // Checks a list [size], or [size, 2] if `dim` is 2, but not yet its values. `argument` must be a literal.
  IndexList add(std::string_view argument, const Tensor& tensor, int64_t dim = 1);

  // Whether the lists are on the CPU. A GPU's backend then passes their values in the parameters of its launches.
  bool are_on_host() const { return are_on_host_; }
  // Whether the values are checked: always if the lists are on the CPU, on a GPU only on request.
  bool are_checked() const { return are_on_host_ || checks_indices(call_); }
  // Returns the values of a list [size], or [size, columns], where the host can read them.
  HostIndices on_host(const IndexList& list, int64_t columns = 1) const;

 private:
  Call& call_;
  std::string_view previous_;  // the argument that was added last; empty if there is none
  bool are_on_host_ = false;
};

// Fails unless an entry of a list is below `count`. Negative entries are padding, and pass. `noun` is "block" or
// "slot". The message names the entry argument[i] or, if `column` is not negative, argument[i, column].
void check_entry(const Call& call, std::string_view argument, int64_t i, int64_t column, std::string_view noun,
                 int64_t entry, int64_t count);
// Calls check_entry() for all entries of a list [size].
void check_entries(const Call& call, std::string_view argument, const IndexLists& lists, const IndexList& list,
                   std::string_view noun, int64_t count);

}  // namespace multikv
