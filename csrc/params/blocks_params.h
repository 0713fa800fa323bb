// What the front end hands to a backend for the ops of family blocks. The arrays of planes stay valid until launch()
// returns.
#pragma once

#include "core/planes.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// The memory of the blocks of a plane. The src and dst strides of `rows` are equal, because it describes one tensor.
struct BlockLayout {
  int64_t stride_block_bytes;
  int64_t token_bytes;  // bytes of one token, which is not the stride between tokens
  StridedRows rows;     // the part of a block that the op may touch, in bytes

  bool operator==(const BlockLayout&) const = default;
};

// The planes of a call, and the blocks that they have in common.
struct BlockPlanes {
  PlaneGroups<BlockLayout> planes;
  int64_t num_blocks;
  int64_t block_bytes;  // the mean of rows.num_elements() over all planes
  bool are_lists_on_host;
};

struct CopyBlocksLayersParams : BlockPlanes {
  IndexList block_mapping;  // [pairs, 2]

  // An item is a pair of a plane.
  constexpr Work work() const {
    return {planes.num_planes * block_mapping.size, block_bytes, block_bytes, /*is_read_soon=*/false};
  }
};
static_assert(LaunchParams<CopyBlocksLayersParams>);

struct ZeroBlocksParams : BlockPlanes {
  IndexList block_ids;
  Indices first_token;  // of each of block_ids; all 0 if not given

  // An item is a block of a plane.
  constexpr Work work() const { return {planes.num_planes * block_ids.size, 0, block_bytes, /*is_read_soon=*/false}; }
};
static_assert(LaunchParams<ZeroBlocksParams>);

struct ChecksumBlocksParams : BlockPlanes {
  IndexList block_ids;
  Indices num_tokens;  // of each of block_ids; if not given, whole blocks are hashed
  int64_t block_size;  // of plane 0; all planes have the same if num_tokens is given
  char* out;           // [block_ids, planes], int64; written
  int64_t out_stride_block_bytes;

  // An item is a block of a plane.
  constexpr Work work() const { return {planes.num_planes * block_ids.size, block_bytes, 8}; }
};
static_assert(LaunchParams<ChecksumBlocksParams>);

}  // namespace multikv
