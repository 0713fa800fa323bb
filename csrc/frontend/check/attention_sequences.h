// The sequences that attention reads, and the checks of their lengths, bounds and block tables.
#pragma once

#include "frontend/check/indices.h"
#include "params/attention_params.h"

namespace multikv {

// The arguments that describe the sequences of a call. make_attention_sequences() checks all of them.
struct AttentionSequenceArguments {
  std::string_view block_table_name;
  const Tensor& block_table;
  const Tensor& seq_lens;
  const OptionalTensor& cu_query_lens;
  int64_t max_query_len, max_seq_len;  // -1: as large as the tensors allow
};

// Checks the arguments, but not yet the values of the index tensors. `num_rows` is the number of rows of the query and
// of all tensors beside it.
AttentionSequences make_attention_sequences(Call& call, const Blocks& blocks, int64_t num_rows,
                                            const AttentionSequenceArguments& arguments);

// Fails unless the lengths and bounds are in range and the blocks that a query token needs exist. If there are no
// sequences, the call has nothing to do. Blocks without a visible key are not inspected.
void check_attention_sequences(Call& call, const AttentionSequences& sequences, const AttentionOptions& options,
                               const Blocks& blocks, std::string_view block_table_name);

}  // namespace multikv
