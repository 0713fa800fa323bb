// Lists of planes. A plane is the K or V (or MLA) cache tensor of one layer: [blocks, block_size, ...].
#pragma once

#include <cstdint>

#include "core/indices.h"

namespace multikv {

// A plane of the caller's list.
struct Plane {
  char* data;     // read, except where the params say that it is written
  int64_t index;  // in the caller's list
};

// Planes of equal layout, which one launch of a GPU kernel processes together. `Layout` holds whatever the kernels of
// an op need to know of a plane besides its address, such as strides in bytes. `Item` is Plane, or what the op has for
// each plane instead.
template <class Layout, class Item = Plane>
struct PlaneGroup {
  Layout layout;
  const Item* planes;
  int64_t num_planes;
};

// All planes of a call. The arrays stay valid until launch() returns.
template <class Layout, class Item = Plane>
struct PlaneGroups {
  const PlaneGroup<Layout, Item>* groups;
  int64_t num_groups;
  int64_t num_planes;  // of all groups
};

// A list of blocks or slots [size], or of pairs of them [size, 2]. A negative entry is padding.
struct IndexList {
  Indices indices;
  int64_t size;
};

}  // namespace multikv
