// The sequences that a gather reads, and the checks of their bounds, starts and block tables.
#pragma once

#include "core/sequences.h"
#include "frontend/check/indices.h"

namespace multikv {

// Checks block_table and seq_starts, except the values. The op sets cu_seq_lens, num_bounds and num_tokens.
Sequences make_sequences(Call& call, const Blocks& blocks, const Tensor& block_table, const OptionalTensor& seq_starts);
// Fails unless the argument batch_size is the number of sequences.
void check_batch_size(const Call& call, const Sequences& sequences, int64_t batch_size);
// Checks cu_seq_lens [num_sequences + 1], except the values.
void set_cu_seq_lens(Call& call, Sequences& sequences, const Tensor& cu_seq_lens);

struct BoundsRule {
  std::string_view argument = "cu_seq_lens";
  bool may_pass_the_end = false;  // the sequences may have more tokens than the output has rows
};

// Where the entry of each logical slot lies: in row device_row_ids[slot] of the device's cache, or if that is negative,
// in row host_row_ids[slot] of the host's cache.
struct RowIds {
  Indices host, device;
  int64_t num_host_rows, num_device_rows;
};

// Bounds are not negative and do not decrease, starts are not negative, and the blocks and rows that the output needs
// exist. Without rows to write there is nothing to do.
void check_sequences(Call& call, const Sequences& sequences, const BoundsRule& rule = {},
                     const RowIds* row_ids = nullptr);

}  // namespace multikv
