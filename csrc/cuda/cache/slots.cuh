// Where a token goes.
#pragma once

#include "cuda/core/divide.cuh"
#include "cuda/core/indices.cuh"

namespace multikv::gpu {

struct Slot {
  int64_t block, offset;
};
// Not for what is past the end.
__device__ inline Slot slot_of(const Slots& slots, int64_t index) {
  const auto block = static_cast<int64_t>(quotient_of(index, slots.block_size));
  return {block, index - block * static_cast<int64_t>(slots.block_size.value)};
}

// False for padding (a negative slot) and for what is past the end.
__device__ inline bool is_slot(const Slots& slots, int64_t index) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(slots.num_slots());
}

// Byte offset of a slot in the cache; -1 if it is none.
__device__ inline int64_t slot_offset(const Slots& slots, int64_t index, int64_t stride_block_bytes,
                                      int64_t stride_slot_bytes) {
  if (!is_slot(slots, index)) return -1;
  const Slot slot = slot_of(slots, index);
  return slot.block * stride_block_bytes + slot.offset * stride_slot_bytes;
}

}  // namespace multikv::gpu
