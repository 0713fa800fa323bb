// Checks that the copies of a swap do not overlap in memory.
#pragma once

#include <vector>

#include "frontend/check/swap_pairs.h"

namespace multikv {

// No byte is written by two copies, and no byte that a copy reads is written by a copy, of all layers. `pairs` are
// sorted by dst, and no two of them have the same dst. Blocks are compared by address only where the tensors of layers
// share memory; otherwise this costs one look at each tensor.
template <class Id>
void check_overlaps(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                    const BlockPairs<Id>& pairs, const MappingRows& rows);

}  // namespace multikv
