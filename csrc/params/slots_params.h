// What the front end hands to a backend for the ops of family slots.
#pragma once

#include "core/slot_groups.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// Token i belongs to the sequence s with cu_query_lens[s] <= i < cu_query_lens[s + 1]. The blocks of sequence s are row
// s, or row table_rows[s], of each group's block table.
struct ComputeSlotMappingParams {
  const SlotGroup* groups;  // valid until launch() returns
  int64_t num_groups;
  Indices cu_query_lens;  // [num_sequences + 1]
  Indices positions;      // [tokens]
  Indices table_rows;     // [num_sequences]; row s if not given. Negative: the sequence has no blocks
  int64_t num_sequences, num_tokens;
  int64_t num_rows;  // of every block table
  ContextRanks ranks;
  bool has_int64_slots;

  constexpr int64_t table_row(int64_t sequence) const {
    return table_rows.is_given() ? table_rows.at(sequence) : sequence;
  }
  constexpr Work work() const {
    return {num_tokens, positions.is_int64 ? 8 : 4, num_groups * (has_int64_slots ? 8 : 4)};
  }
};
static_assert(LaunchParams<ComputeSlotMappingParams>);

}  // namespace multikv
