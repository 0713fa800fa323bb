// Checks that no copy of a swap writes memory that another copy reads or writes.
#pragma once

#include <vector>

#include "frontend/check/swap_pairs.h"

namespace multikv {

// Fails if a byte is written by two copies, or written by one copy and read by any copy. The copies are all pairs in
// all layers. `pairs` must be sorted by dst, without duplicate dst. Blocks are compared only if tensors share memory,
// so the check usually takes time linear in the number of layers, apart from a sort of their addresses.
template <class Id>
void check_overlaps(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                    const BlockPairs<Id>& pairs, const MappingRows& rows);

}  // namespace multikv
