#include "frontend/check/sequence_bounds.h"

#include <algorithm>

#include "frontend/check/shapes.h"

namespace multikv {

namespace {

// The index tensors of Sequences, where the host can read them.
struct HostSequences {
  HostSequences(const Call& call, const Sequences& sequences)
      : bounds(call, sequences.cu_seq_lens, 1, sequences.num_bounds),
        starts(call, sequences.seq_starts, 1, sequences.num_sequences),
        table(call, sequences.block_table, sequences.num_sequences, sequences.blocks_per_sequence) {}

  HostIndices bounds, starts, table;
};

// A block of which the output needs the entries at the offsets begin .. end - 1.
struct NeededBlock {
  int64_t sequence, column;  // the block is block_table[sequence, column]
  int64_t begin, end;
};

// Calls visit(NeededBlock) for every block that the output needs. check_bounds() and check_starts() come first.
template <class Visit>
void for_each_needed_block(const Sequences& sequences, const HostSequences& host, const Visit& visit) {
  const int64_t block_size = sequences.blocks.block_size.signed_value();
  for (int64_t s = 0; s < sequences.num_sequences; ++s) {
    const int64_t start = host.starts.is_given() ? host.starts[s] : 0;
    const int64_t end =
        s + 1 < sequences.num_bounds ? std::min(host.bounds[s + 1], sequences.num_tokens) : sequences.num_tokens;
    const int64_t length = end - host.bounds[s];
    const int64_t first = start / block_size;
    if (length <= 0 || first >= sequences.blocks_per_sequence) continue;
    // A uint64_t, because the sum of two non-negative int64_t may exceed the largest int64_t.
    const uint64_t last_position = static_cast<uint64_t>(start) + static_cast<uint64_t>(length) - 1;
    const auto last = static_cast<int64_t>(last_position / block_size);
    const auto last_offset = static_cast<int64_t>(last_position % block_size);
    for (int64_t b = first; b <= std::min(last, sequences.blocks_per_sequence - 1); ++b) {
      visit(NeededBlock{s, b, b == first ? start % block_size : 0, b == last ? last_offset + 1 : block_size});
    }
  }
}

void check_starts(const Call& call, const Sequences& sequences, const HostIndices& starts) {
  if (!starts.is_given()) return;
  for (int64_t s = 0; s < sequences.num_sequences; ++s) {
    if (starts[s] < 0) call.fail_index("seq_starts", text(s), "a position of at least 0", starts[s]);
  }
}

void check_blocks(const Call& call, const Sequences& sequences, const HostSequences& host) {
  const int64_t num_blocks = sequences.blocks.num_blocks;
  for_each_needed_block(sequences, host, [&](const NeededBlock& needed) {
    const int64_t block = host.table.at(needed.sequence, needed.column);
    if (block >= 0 && block < num_blocks) return;
    call.fail_index("block_table", join({text(needed.sequence), ", ", text(needed.column)}),
                    range_text("block", num_blocks), block);
  });
}

// check_blocks() comes first.
void check_row_ids(const Call& call, const Sequences& sequences, const HostSequences& host, const RowIds& row_ids) {
  const int64_t num_slots = sequences.blocks.num_slots();
  const HostIndices host_rows(call, row_ids.host, 1, num_slots), device_rows(call, row_ids.device, 1, num_slots);
  for_each_needed_block(sequences, host, [&](const NeededBlock& needed) {
    const int64_t block = host.table.at(needed.sequence, needed.column);
    const int64_t first = block * sequences.blocks.block_size.signed_value();
    for (int64_t slot = first + needed.begin; slot < first + needed.end; ++slot) {
      const int64_t device_row = device_rows[slot];
      if (device_row >= row_ids.num_device_rows) {
        call.fail_index("device_row_ids", text(slot), "a row below " + text(row_ids.num_device_rows), device_row);
      }
      if (device_row < 0 && host_rows[slot] >= row_ids.num_host_rows) {
        call.fail_index("host_row_ids", text(slot), "a row below " + text(row_ids.num_host_rows), host_rows[slot]);
      }
    }
  });
}

}  // namespace

Sequences make_sequences(Call& call, const Blocks& blocks, const Tensor& block_table,
                         const OptionalTensor& seq_starts) {
  Sequences sequences{};
  sequences.block_table = indices_of(call, "block_table", block_table, 2);
  sequences.num_sequences = block_table.size(0);
  sequences.blocks_per_sequence = block_table.size(1);
  sequences.blocks = blocks;
  if (seq_starts.has_value()) {
    sequences.seq_starts = indices_of(call, "seq_starts", *seq_starts, 1);
    check_size(call, "seq_starts", *seq_starts, 0, sequences.num_sequences, "batch_size");
  }
  return sequences;
}

void check_batch_size(const Call& call, const Sequences& sequences, int64_t batch_size) {
  if (batch_size == sequences.num_sequences || batch_size == -1) return;
  call.fail("batch_size", text(sequences.num_sequences) + " (rows of block_table), or -1", text(batch_size));
}

void set_cu_seq_lens(Call& call, Sequences& sequences, const Tensor& cu_seq_lens) {
  sequences.cu_seq_lens = indices_of(call, "cu_seq_lens", cu_seq_lens, 1);
  sequences.num_bounds = sequences.num_sequences + 1;
  check_size(call, "cu_seq_lens", cu_seq_lens, 0, sequences.num_bounds, "batch_size + 1");
}

void check_bounds(const Call& call, const HostIndices& bounds, int64_t num_bounds, int64_t num_rows,
                  const BoundsRule& rule) {
  int64_t previous = 0;
  for (int64_t i = 0; i < num_bounds; ++i) {
    if (bounds[i] < previous) {
      const std::string_view reason = i == 0 ? "" : " (bounds must not decrease)";
      call.fail_index(rule.argument, text(i), join({"a bound of at least ", text(previous), reason}), bounds[i]);
    }
    if (!rule.may_exceed_output && bounds[i] > num_rows) {
      call.fail_index(rule.argument, text(i), join({"a bound of at most ", text(num_rows), " (", rule.rows, ")"}),
                      bounds[i]);
    }
    previous = bounds[i];
  }
}

void check_sequences(Call& call, const Sequences& sequences, const BoundsRule& rule, const RowIds* row_ids) {
  if (sequences.num_sequences == 0) call.set_nothing_to_do();
  if (call.nothing_to_do()) return;
  if (sequences.num_tokens == 0 || sequences.blocks_per_sequence == 0) call.set_nothing_to_do();
  if (!checks_indices(call)) return;

  const HostSequences host(call, sequences);
  check_bounds(call, host.bounds, sequences.num_bounds, sequences.num_tokens, rule);
  check_starts(call, sequences, host.starts);
  check_blocks(call, sequences, host);
  if (row_ids != nullptr) check_row_ids(call, sequences, host, *row_ids);
}

}  // namespace multikv
