// The addresses of the vectors of a unit: tokens that are copied from slots to slots.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/cache/planes.cuh"
#include "cuda/cache/slots.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/pack.cuh"
#include "cuda/launch.h"
#include "params/moves_params.h"

namespace multikv::gpu {

// Two offsets in bytes: where something is read and where it is written.
struct Offsets {
  int64_t src, dst;
};

// The slots that one launch may copy from and to, and where they lie.
struct SlotLayout {
  Blocks src_blocks, dst_blocks;
  SlotStrides src, dst;

  // Returns the offsets of two slots. They are negative if one of them is not a slot of its side.
  __device__ Offsets of(const SlotPair& slots) const {
    if (!is_slot(src_blocks, slots.src) || !is_slot(dst_blocks, slots.dst)) return {-1, -1};
    return {src.offset_of(split(src_blocks, slots.src)), dst.offset_of(split(dst_blocks, slots.dst))};
  }
};

// How the rows of a unit are arranged; see StridedRows.
enum class Arrangement : int {
  kDense,    // the unit is one row
  kTwoDims,  // the rows have one or two dimensions
  kAnyDims,
};

// A unit as vectors of kWidth bytes.
template <int kWidth, Arrangement kArrangement>
struct UnitLayout {
  uint32_t num_vectors;  // of a unit
  Divisor32 row_vectors;
  Divisor32 inner_rows;  // rows of dimension 0
  StridedRows rows;

  static UnitLayout of(const StridedRows& unit) {
    return {static_cast<uint32_t>(unit.num_elements() / kWidth), Divisor32::of(unit.row_size / kWidth),
            Divisor32::of(unit.num_dims > 0 ? unit.size[0] : 1), unit};
  }

  // The offsets of a row from the start of the unit.
  __device__ Offsets row(uint32_t row) const {
    if constexpr (kArrangement == Arrangement::kDense) {
      return {0, 0};
    } else if constexpr (kArrangement == Arrangement::kTwoDims) {
      const uint32_t outer = inner_rows.divide(row), inner = row - outer * inner_rows.value;
      return {inner * rows.src_stride[0] + outer * rows.src_stride[1],
              inner * rows.dst_stride[0] + outer * rows.dst_stride[1]};
    } else {
      Offsets offsets{0, 0};
      for (int d = 0; d < rows.num_dims; ++d) {
        const auto size = static_cast<uint32_t>(rows.size[d]);
        const uint32_t rest = row / size;
        offsets.src += (row - rest * size) * rows.src_stride[d];
        offsets.dst += (row - rest * size) * rows.dst_stride[d];
        row = rest;
      }
      return offsets;
    }
  }
  // The offsets of a vector from the start of the unit.
  __device__ Offsets vector(uint32_t vector) const {
    if constexpr (kArrangement == Arrangement::kDense) {
      const int64_t bytes = static_cast<int64_t>(vector) * kWidth;
      return {bytes, bytes};
    } else {
      const uint32_t row_number = row_vectors.divide(vector);
      const int64_t bytes = static_cast<int64_t>(vector - row_number * row_vectors.value) * kWidth;
      const Offsets at = row(row_number);
      return {at.src + bytes, at.dst + bytes};
    }
  }
};

// The most vectors of a unit that one launch copies.
constexpr int64_t kMaxUnitVectors = int64_t{1} << 31;

// What a launch copies of every unit: all of it, or a part if the unit has too many vectors.
struct UnitPart {
  StridedRows rows;
  const PlanePair* planes;  // where the part begins in the first unit of each plane
};

// The bitwise or of all addresses, strides and sizes of a group of planes.
inline AlignmentBits alignment_bits(const PlaneGroup<CopyLayout, PlanePair>& group) {
  AlignmentBits bits = group.layout.alignment_bits();
  for (int64_t i = 0; i < group.num_planes; ++i) {
    bits = bits | AlignmentBits(group.planes[i].src) | AlignmentBits(group.planes[i].dst);
  }
  return bits;
}

// Calls launch(part) for parts of the unit of at most `most_bytes` bytes. Parts begin at multiples of 16 bytes in their
// rows.
template <class Launch>
cudaError_t for_each_part(const UnitPart& unit, int64_t num_planes, int64_t most_bytes, const Launch& launch) {
  const StridedRows& rows = unit.rows;
  if (rows.num_elements() <= most_bytes) return launch(unit);
  UnitPart first = unit, second = unit;
  int64_t src_bytes, dst_bytes;  // from the first part to the second
  if (rows.num_dims > 0) {       // half of the outermost dimension, or all of it if its size is 1
    const int d = rows.num_dims - 1;
    const int64_t size = rows.size[d], half = ceil_div<int64_t>(size, 2);
    const int64_t inner_rows = rows.num_rows / size;
    first.rows.size[d] = half, first.rows.num_rows = half * inner_rows;
    second.rows.size[d] = size - half, second.rows.num_rows = (size - half) * inner_rows;
    if (size == 1) first.rows.num_dims = d;
    src_bytes = half * rows.src_stride[d], dst_bytes = half * rows.dst_stride[d];
  } else {
    const int64_t half = ceil_div<int64_t>(rows.row_size, 32) * 16;
    first.rows.row_size = half, second.rows.row_size = rows.row_size - half;
    src_bytes = dst_bytes = half;
  }
  MULTIKV_RETURN_IF_FAILED(for_each_part(first, num_planes, most_bytes, launch));
  if (second.rows.num_elements() == 0) return cudaSuccess;
  std::vector<PlanePair> planes(unit.planes, unit.planes + num_planes);
  for (PlanePair& plane : planes) plane.src += src_bytes, plane.dst += dst_bytes;
  second.planes = planes.data();
  return for_each_part(second, num_planes, most_bytes, launch);
}

// Calls launch<kWidth, kArrangement>(part) for all parts of the units of a group, with the widest vectors, of 16, 4 or
// 1 bytes, that the alignment allows. Units of more than two dimensions are copied byte by byte. A part has at most
// `most_vectors` vectors.
template <class Launch>
cudaError_t with_unit_layouts(const PlaneGroup<CopyLayout, PlanePair>& group, const StridedRows& unit,
                              int64_t most_vectors, const Launch& launch) {
  const int widest = unit.num_dims > 2 ? 1 : alignment_bits(group).widest(16);
  const int width = widest == 16 ? 16 : widest >= 4 ? 4 : 1;
  return for_each_part({unit, group.planes}, group.num_planes, most_vectors * width, [&](const UnitPart& part) {
    if (part.rows.num_dims > 2) return launch.template operator()<1, Arrangement::kAnyDims>(part);
    const auto run = [&]<Arrangement kArrangement>() {
      if (width == 16) return launch.template operator()<16, kArrangement>(part);
      if (width == 4) return launch.template operator()<4, kArrangement>(part);
      return launch.template operator()<1, kArrangement>(part);
    };
    return part.rows.num_dims == 0 ? run.template operator()<Arrangement::kDense>()
                                   : run.template operator()<Arrangement::kTwoDims>();
  });
}

}  // namespace multikv::gpu
