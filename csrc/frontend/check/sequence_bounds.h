// The sequences that a gather reads, and the checks of their bounds, starts and block tables.
#pragma once

#include "core/sequences.h"
#include "frontend/check/indices.h"

namespace multikv {

// Checks block_table and seq_starts, but not yet their values. The caller sets cu_seq_lens, num_bounds and num_tokens.
Sequences make_sequences(Call& call, const Blocks& blocks, const Tensor& block_table, const OptionalTensor& seq_starts);
// Fails unless the argument batch_size is the number of sequences, or -1, which stands for it.
void check_batch_size(const Call& call, const Sequences& sequences, int64_t batch_size);
// Checks cu_seq_lens [num_sequences + 1], but not yet its values.
void set_cu_seq_lens(Call& call, Sequences& sequences, const Tensor& cu_seq_lens);

// How the bounds of sequences are checked.
struct BoundsRule {
  std::string_view argument = "cu_seq_lens";  // the name of the bounds
  bool may_exceed_output = false;             // whether bounds may exceed the number of rows of the output
  std::string_view rows = "rows of the output";
};

// Fails if a bound is negative or below the bound before it, or if it exceeds num_rows and the rule forbids that.
void check_bounds(const Call& call, const HostIndices& bounds, int64_t num_bounds, int64_t num_rows,
                  const BoundsRule& rule);

// The location of the entry of each logical slot: slot device_row_ids[slot] of src_cache or, if that is negative, row
// host_row_ids[slot] of host_cache. If both are negative there is no entry, and the output row is left as it is.
struct RowIds {
  Indices host, device;
  int64_t num_host_rows, num_device_rows;
};

// Fails unless the bounds are not negative, do not decrease and do not exceed the output (see BoundsRule), the starts
// are not negative, and the blocks and rows that the output needs exist. Output rows whose block would lie beyond the
// last column of block_table are not checked, because the gathers skip them. If there are no rows to write, the call
// has nothing to do.
void check_sequences(Call& call, const Sequences& sequences, const BoundsRule& rule = {},
                     const RowIds* row_ids = nullptr);

}  // namespace multikv
