// Slots of a cache, and the slots that the tokens of a call are written to.
#pragma once

#include "core/divisor.h"
#include "core/indices.h"

namespace multikv {

// A slot as its block and its offset within the block: slot = block * block_size + offset.
struct BlockOffset {
  int64_t block, offset;
};

// The number and the size of a cache's blocks.
struct Blocks {
  int64_t num_blocks;
  Divisor block_size;

  constexpr int64_t num_slots() const { return num_blocks * block_size.signed_value(); }
};

// The slot of each token. A negative slot is padding: its token is skipped.
struct Slots {
  Indices mapping;  // [tokens], or [layers, tokens]
  int64_t num_tokens;
};

}  // namespace multikv
