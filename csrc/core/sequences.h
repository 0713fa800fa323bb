// Sequences of tokens in a paged cache, as a gather reads them.
#pragma once

#include "core/slots.h"

namespace multikv {

// Output row i belongs to the sequence s with cu_seq_lens[s] <= i < cu_seq_lens[s + 1]. The row is position
// p = i - cu_seq_lens[s] + seq_starts[s], which lies in block block_table[s, p / block_size] at offset p % block_size.
struct Sequences {
  Indices block_table;  // [num_sequences, blocks_per_sequence]
  Indices cu_seq_lens;  // [num_bounds]
  Indices seq_starts;   // [num_sequences], or not given: 0
  int64_t num_sequences;
  int64_t num_bounds;  // num_sequences + 1, or num_sequences where the last sequence ends with the output
  int64_t blocks_per_sequence, num_tokens;
  Blocks blocks;  // the blocks that the table counts
};

}  // namespace multikv
