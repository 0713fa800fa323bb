// From indices to the slots of a cache.
#pragma once

#include "core/slots.h"
#include "cuda/core/divide.cuh"
#include "cuda/core/indices.cuh"

namespace multikv::gpu {

// False for padding (a negative index) and for an index past the end.
__device__ inline bool is_slot(const Blocks& blocks, int64_t index) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(blocks.num_slots());
}

// The block and the offset of a slot. The slot must be one of the cache.
__device__ inline BlockOffset split(const Blocks& blocks, int64_t slot) {
  const auto block = static_cast<int64_t>(quotient_of(slot, blocks.block_size));
  return {block, slot - block * blocks.block_size.signed_value()};
}

// Where the slots of a cache lie, in bytes from its start.
struct SlotOffsets {
  const Blocks& blocks;
  int64_t stride_block_bytes, stride_slot_bytes;

  // -1 if the index is no slot.
  __device__ int64_t of(int64_t index) const {
    if (!is_slot(blocks, index)) return -1;
    const BlockOffset at = split(blocks, index);
    return at.block * stride_block_bytes + at.offset * stride_slot_bytes;
  }
};

}  // namespace multikv::gpu
