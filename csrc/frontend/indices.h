// Checks of index values, on the host, before anything is written. On a GPU they cost a synchronisation and run only
// on request; its kernels skip what these would reject.
#pragma once

#include "call.h"

namespace multikv {

// Every slot is below num_slots; negative ones are padding.
void check_slots(const Call& call, std::string_view argument, const Indices& slots, int64_t num_tokens, int64_t num_slots);

// Where sequences lie in the output and in the cache: [cu_seq_lens[s], cu_seq_lens[s + 1]) and from seq_starts[s].
struct Sequences {
  Indices block_table, cu_seq_lens, seq_starts;
  int64_t num_sequences, blocks_per_sequence;
  int64_t num_tokens, num_blocks, block_size;
};

// Bounds do not decrease and end within the output; the block ids that a token needs exist.
void check_sequences(const Call& call, const Sequences& sequences);

}  // namespace multikv
