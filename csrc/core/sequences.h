// The sequences of tokens that a gather reads from a paged cache.
#pragma once

#include "core/slots.h"

namespace multikv {

// Output row i belongs to the sequence s with cu_seq_lens[s] <= i < cu_seq_lens[s + 1]. The row is read from position p
// of the sequence:
//
//   p      = i - cu_seq_lens[s] + seq_starts[s]
//   block  = block_table[s, p / block_size]
//   offset = p % block_size
struct Sequences {
  Indices block_table;  // [num_sequences, blocks_per_sequence]
  Indices cu_seq_lens;  // [num_bounds]
  Indices seq_starts;   // [num_sequences]; all 0 if not given
  int64_t num_sequences;
  int64_t num_bounds;  // num_sequences + 1; or num_sequences, if the last sequence ends at num_tokens
  int64_t blocks_per_sequence;
  int64_t num_tokens;  // rows of the output
  Blocks blocks;       // the blocks that block_table refers to
};

}  // namespace multikv
