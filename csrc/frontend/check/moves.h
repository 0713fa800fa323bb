// The check of the positions that compact_cache keeps.
#pragma once

#include "frontend/check/indices.h"
#include "params/moves_params.h"

namespace multikv {

// Fails unless the bounds and the starts are good, every position that is kept is at least its destination, positions
// increase within a sequence, and the blocks of positions and destinations exist. `num_groups` is that of `keep`.
void check_kept_tokens(const Call& call, const KeptTokens& kept, const Blocks& blocks, int64_t num_heads,
                       int64_t num_groups);

}  // namespace multikv
