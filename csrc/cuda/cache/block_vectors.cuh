// The blocks of planes as vectors, and launches of kernels that process blocks.
#pragma once

#include <algorithm>

#include "cuda/cache/planes.cuh"
#include "cuda/core/divide.cuh"
#include "cuda/launch.h"
#include "params/blocks_params.h"

namespace multikv::gpu {

// The blocks of a group of planes, in vectors of `width` bytes. Vectors are numbered in the order of the rows.
struct BlockVectors {
  int64_t stride_block_bytes, num_blocks;
  int64_t num_vectors;    // of a block
  int64_t token_vectors;  // of a token
  Divisor row_vectors;
  int32_t num_dims;
  Divisor size[StridedRows::kMaxDims];
  int64_t stride_bytes[StridedRows::kMaxDims];

  static BlockVectors of(const BlockPlanes& p, const BlockLayout& layout, int width) {
    const StridedRows& rows = layout.rows;
    BlockVectors blocks{};
    blocks.stride_block_bytes = layout.stride_block_bytes;
    blocks.num_blocks = p.num_blocks;
    blocks.num_vectors = rows.num_elements() / width;
    blocks.token_vectors = layout.token_bytes / width;
    blocks.row_vectors = Divisor::of(std::max<int64_t>(rows.row_size / width, 1));
    blocks.num_dims = rows.num_dims;
    for (int d = 0; d < rows.num_dims; ++d) {
      blocks.size[d] = Divisor::of(std::max<int64_t>(rows.size[d], 1));
      blocks.stride_bytes[d] = rows.src_stride[d];
    }
    return blocks;
  }

  // Returns the offset of a vector from the start of its block. Blocks that are not kStrided are one row.
  template <int kWidth, bool kStrided>
  __device__ int64_t offset_bytes(int64_t vector) const {
    if constexpr (!kStrided) return vector * kWidth;
    auto row = static_cast<int64_t>(quotient_of(vector, row_vectors));
    int64_t bytes = (vector - row * row_vectors.signed_value()) * kWidth;
    for (int d = 0; d + 1 < num_dims; ++d) {
      const auto outer = static_cast<int64_t>(quotient_of(row, size[d]));
      bytes += (row - outer * size[d].signed_value()) * stride_bytes[d];
      row = outer;
    }
    return bytes + row * stride_bytes[num_dims - 1];
  }
};

__device__ inline bool is_valid(int64_t block, const BlockVectors& blocks) {
  return block >= 0 && block < blocks.num_blocks;
}

// Returns the bytes, up to 16, of the widest vectors that the planes of a group allow.
inline int widest_vector(const PlaneGroup<BlockLayout>& group) {
  const BlockLayout& layout = group.layout;
  AlignmentBits bits = layout.rows.src_alignment_bits() | layout.stride_block_bytes | layout.token_bytes;
  for (int64_t i = 0; i < group.num_planes; ++i) bits = bits | AlignmentBits(group.planes[i].data);
  return bits.widest(16);
}

// Launches the kernels for one group of planes. See launch_planes_as() for the last two arguments.
template <PlanesHead Head, class EntryOf, class Launch>
cudaError_t launch_group(const Head& head, const PlaneGroup<BlockLayout>& group, int64_t num_entries,
                         const EntryOf& entry_of, const Launch& launch) {
  const PlanesWork<Head> work{group.planes, group.num_planes, num_entries};
  if (head.are_entries_in_parameters) launch_planes(head, work, entry_of, launch);
  else launch_planes(head, work, nullptr, launch);
  return cudaGetLastError();
}

}  // namespace multikv::gpu
