// Checks whether an index is a slot of a cache, and computes where the slot lies.
#pragma once

#include "core/slots.h"
#include "cuda/core/divide.cuh"
#include "cuda/core/indices.cuh"

namespace multikv::gpu {

// Whether an index is a slot of the cache: it is neither padding (negative) nor past the end.
__device__ inline bool is_slot(const Blocks& blocks, int64_t index) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(blocks.num_slots());
}

// Splits a slot, which must not be negative, into its block and its offset.
__device__ inline BlockOffset split(const Blocks& blocks, int64_t slot) {
  const auto block = static_cast<int64_t>(quotient_of(slot, blocks.block_size));
  return {block, slot - block * blocks.block_size.signed_value()};
}

// Computes the offsets of slots, in bytes from the start of the cache.
struct SlotOffsets {
  const Blocks& blocks;
  int64_t stride_block_bytes, stride_slot_bytes;

  // Returns the offset of a slot in bytes, or -1 if the index is not a slot of the cache.
  __device__ int64_t of(int64_t index) const {
    if (!is_slot(blocks, index)) return -1;
    const BlockOffset at = split(blocks, index);
    return at.block * stride_block_bytes + at.offset * stride_slot_bytes;
  }
};

}  // namespace multikv::gpu
