// The order in which units are copied over a link, to or from the memory of the host. It is the order of addresses in
// that memory: the link and the memory of the host are slower if neighbouring writes are far apart.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>

#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/launch.h"
#include "cuda/swap/strategy.h"
#include "params/moves_params.h"

namespace multikv::gpu {

constexpr int kCopyUnroll = 4, kMaxLinkThreads = 1024;

// A link, and how units lie in the memory of the host at its end: in planes, in each plane in blocks, and in each block
// units_per_block units.
struct Link {
  int threads;  // the number of threads that saturate the link
  bool is_dst_on_host;
  int64_t stride_plane, stride_block, stride_unit;  // in bytes
  int64_t units_per_block;
};

// Returns the link between the two devices of a copy; none if both are one GPU. The strides are not real ones: they are
// larger than those of the rows of a unit, and make the copy go plane by plane, and in each plane unit by unit. A
// caller that knows the strides in the memory of the host replaces them.
inline std::optional<Link> link_of(const PlaneCopies& copies, const Context& context) {
  if (copies.src_device >= 0 && copies.dst_device >= 0) return std::nullopt;
  const Direction direction = direction_of(copies.src_device, copies.dst_device);
  constexpr int64_t kFar = std::numeric_limits<int64_t>::max();
  return Link{.threads = crossovers.of(context.device_index, direction).kernel_threads.load(std::memory_order_relaxed),
              .is_dst_on_host = copies.dst_device < 0,
              .stride_plane = kFar,
              .stride_block = kFar - 1,
              .stride_unit = kFar - 2,
              .units_per_block = 1};
}

// A row of a unit of a plane.
struct LinkRow {
  int64_t plane = 0, unit = 0;
  uint32_t row = 0;
};

// What is copied, as pieces of rows. Piece i is piece i % pieces_per_row of row i / pieces_per_row in the order of
// `dims`, of which dims[0] is the innermost. A piece is copied by 2^lanes_log2 neighbouring threads, which copy one
// vector each, so that the stores of a warp are as wide as rows allow.
struct LinkOrder {
  // A step along a dimension adds these numbers to those of plane, unit and row.
  struct Dim {
    Divisor size;
    int64_t units;
    int32_t planes, rows;
  };
  static constexpr int kDims = 5;
  static constexpr int kStepLog2 = 7;  // a warp has kCopyUnroll * 32 vectors in flight
  Dim dims[kDims];
  Divisor pieces_per_row;
  int64_t num_pieces;
  int32_t lanes_log2;

  static LinkOrder of(const Link& link, int64_t num_planes, int64_t num_units, const StridedRows& rows,
                      int64_t row_vectors);

  // The row with number i. Its unit may be past the last one, because the last block of units need not be full.
  __device__ LinkRow row(uint64_t i) const {
    LinkRow at;
#pragma unroll
    for (int k = 0; k < kDims; ++k) {
      const uint64_t rest = k + 1 < kDims ? quotient_of(i, dims[k].size) : 0;
      const auto steps = static_cast<int64_t>(i - rest * dims[k].size.value);
      at.plane += steps * dims[k].planes;
      at.unit += steps * dims[k].units;
      at.row += static_cast<uint32_t>(steps) * dims[k].rows;
      i = rest;
    }
    return at;
  }
};
static_assert(kCopyUnroll * 32 == 1 << LinkOrder::kStepLog2);

inline LinkOrder LinkOrder::of(const Link& link, int64_t num_planes, int64_t num_units, const StridedRows& rows,
                               int64_t row_vectors) {
  struct HostDim {
    int64_t stride;  // in the memory of the host
    Dim dim;
  };
  const auto size_of = [](int64_t size) { return Divisor::of(size); };
  const int64_t* strides = link.is_dst_on_host ? rows.dst_stride : rows.src_stride;
  const int64_t block = std::min(link.units_per_block, num_units), blocks = ceil_div(num_units, block);
  const bool has_two_dims = rows.num_dims == 2, has_dims = rows.num_dims == 1 || has_two_dims;
  const int64_t inner_rows = has_dims ? rows.size[0] : rows.num_rows;
  HostDim all[kDims] = {
      {has_dims ? strides[0] : 0, {size_of(inner_rows), 0, 0, 1}},
      {has_two_dims ? strides[1] : 0, {size_of(rows.num_rows / inner_rows), 0, 0, static_cast<int32_t>(inner_rows)}},
      {link.stride_unit, {size_of(block), 1, 0, 0}},
      {link.stride_block, {size_of(blocks), block, 0, 0}},
      {link.stride_plane, {size_of(num_planes), 0, 1, 0}},
  };
  std::stable_sort(all, all + kDims, [](const HostDim& a, const HostDim& b) { return a.stride < b.stride; });
  LinkOrder order{};
  for (int k = 0; k < kDims; ++k) order.dims[k] = all[k].dim;
  // With fewer than 4 lanes a step would have more than 32 pieces.
  order.lanes_log2 = 2;
  while ((1 << order.lanes_log2) < row_vectors && order.lanes_log2 < 5) ++order.lanes_log2;
  const int64_t pieces = ceil_div<int64_t>(row_vectors, int64_t{1} << order.lanes_log2);
  order.pieces_per_row = Divisor::of(pieces);
  order.num_pieces = pieces * rows.num_rows * block * blocks * num_planes;
  return order;
}

}  // namespace multikv::gpu
