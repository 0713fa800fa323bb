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

// Divides pairs into batches of at most `capacity` pairs (at least 2). The slots of both sides are those of one pool.
// If a slot is written twice, the later pair counts.
PairBatches divide_overlapping(const std::vector<SlotPair>& pairs, int64_t capacity);

}  // namespace multikv::gpu
