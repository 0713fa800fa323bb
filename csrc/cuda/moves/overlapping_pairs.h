// Pairs of slots that are copied as if all were read before one is written, divided into batches that fit into the
// parameters of a launch.
#pragma once

#include <cstdint>
#include <vector>

#include "params/moves_params.h"

namespace multikv::gpu {

// Batches of pairs, to be copied one after the other. Each copies as if it read all its slots before it writes one.
struct PairBatches {
  std::vector<SlotPair> pairs;
  std::vector<int64_t> ends;  // the number of pairs up to the end of each batch
};

// The offsets of slots in planes that all have the same distance from src to dst. A slot of src and a slot of dst with
// the same offset are the same memory.
struct PoolSlots {
  const PlaneCopies& copies;
  const PlaneGroup<CopyLayout, PlanePair>& group;

  // The offsets of the slots of a pair, in bytes from the start of src.
  SlotPair offsets(const SlotPair& slots) const;
};

// Whether no plane of src shares memory with a plane of dst. Planes that interleave count as sharing memory.
bool are_apart(const PlaneCopies& copies);

// Divides pairs into batches of at most `capacity` pairs (at least 2). If a slot is written twice, the later pair
// counts. Slots of src and dst must be the same memory or share none.
PairBatches divide_overlapping(const std::vector<SlotPair>& pairs, const PoolSlots& pool, int64_t capacity);

}  // namespace multikv::gpu
