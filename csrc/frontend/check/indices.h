// What the ops make of index tensors, and the checks of their values, on the host, before anything is written. On a GPU
// these cost a synchronisation and run only on request; its kernels skip what these would reject.
#pragma once

#include <optional>

#include "frontend/check/call.h"

namespace multikv {

// Where tokens go: slot_mapping [tokens], or of `dim` 2 [layers, tokens]. Its blocks are set by the op.
Slots make_slots(Call& call, const Tensor& slot_mapping, int64_t dim = 1);
// The blocks that slots count through: those of a cache [blocks, ...] with the block size in that dimension.
void set_blocks(const Call& call, Slots& slots, std::string_view cache_name, const Tensor& cache,
                int64_t block_size_dim = 1);
// Every slot is below num_slots; negative ones are padding. No tokens: nothing to do.
void check_slots(Call& call, const Slots& slots);
void check_slots_of_layers(Call& call, const Slots& slots, int64_t num_layers);

// Every token has a position in the table.
void check_positions(const Call& call, const Indices& positions, int64_t num_tokens, int64_t num_positions);

// Sequences of rows in a cache [blocks, block_size, ...]. Their bounds and num_tokens are set by the op.
Sequences make_sequences(Call& call, std::string_view cache_name, const Tensor& cache, const Tensor& block_table,
                         const std::optional<Tensor>& seq_starts);
// As make_sequences found it.
void check_batch_size(const Call& call, const Sequences& sequences, int64_t batch_size);
// Bounds of all sequences and an end.
void set_cu_seq_lens(Call& call, Sequences& sequences, const Tensor& cu_seq_lens);

// Bounds are not negative and do not decrease; the block ids that a row needs exist. No rows: nothing to do.
struct BoundsRule {
  std::string_view argument = "cu_seq_lens";
  bool may_pass_the_end = false;  // of the output: rows past it are nobody's
};
// Where each row of the logical blocks lies; see CpGatherAndUpconvertFp8KvCacheParams.
struct RowIds {
  Indices host, device;
  int64_t num_host_rows, num_device_rows;
};
void check_sequences(Call& call, const Sequences& sequences, const BoundsRule& rule = {},
                     const RowIds* row_ids = nullptr);

}  // namespace multikv
