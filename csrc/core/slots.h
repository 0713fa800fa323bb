// Slots of a cache, and where the tokens of a write go.
#pragma once

#include "core/divisor.h"
#include "core/indices.h"

namespace multikv {

// A slot, split: slot = block * block_size + offset.
struct BlockOffset {
  int64_t block, offset;
};

// The blocks of a cache.
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
