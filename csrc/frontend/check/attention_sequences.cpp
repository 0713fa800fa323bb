#include "frontend/check/attention_sequences.h"

#include <algorithm>

#include "frontend/check/shapes.h"

namespace multikv {

namespace {

// The index tensors of AttentionSequences and the query mask, where the host can read them.
struct HostSequences {
  HostSequences(const Call& call, const AttentionSequences& sequences, const AttentionOptions& options)
      : lengths(call, sequences.seq_lens, 1, sequences.num_sequences),
        bounds(call, sequences.cu_query_lens, 1, sequences.num_sequences + 1),
        table(call, sequences.block_table, sequences.num_sequences, sequences.blocks_per_sequence),
        mask(call, {options.query_mask, 0, true}, 1, sequences.num_rows) {}

  int64_t query_begin(int64_t sequence) const { return bounds.is_given() ? bounds[sequence] : sequence; }
  int64_t query_len(int64_t sequence) const { return bounds.is_given() ? bounds[sequence + 1] - bounds[sequence] : 1; }

  HostIndices lengths, bounds, table, mask;
};

void check_lengths(const Call& call, const AttentionSequences& sequences, int64_t block_size,
                   const HostIndices& lengths) {
  const int64_t num_slots = wrapping_product(sequences.blocks_per_sequence, block_size);
  for (int64_t s = 0; s < sequences.num_sequences; ++s) {
    if (lengths[s] < 0) call.fail_index("seq_lens", text(s), "a length of at least 0", lengths[s]);
    if (lengths[s] <= sequences.max_seq_len) continue;
    const bool is_table_full = sequences.max_seq_len == num_slots;
    call.fail_index("seq_lens", text(s),
                    join({"a length of at most ", text(sequences.max_seq_len),
                          is_table_full ? " (slots of a row of the block table)" : " (max_seq_len)"}),
                    lengths[s]);
  }
}

void check_bounds(const Call& call, const AttentionSequences& sequences, const HostIndices& bounds) {
  if (!bounds.is_given()) return;
  int64_t previous = 0;
  for (int64_t i = 0; i <= sequences.num_sequences; ++i) {
    if (bounds[i] < previous) {
      const std::string_view reason = i == 0 ? "" : " (bounds must not decrease)";
      call.fail_index("cu_query_lens", text(i), join({"a bound of at least ", text(previous), reason}), bounds[i]);
    }
    if (bounds[i] > sequences.num_rows) {
      call.fail_index("cu_query_lens", text(i),
                      join({"a bound of at most ", text(sequences.num_rows), " (rows of query and out)"}), bounds[i]);
    }
    if (i > 0 && bounds[i] - previous > sequences.max_query_len) {
      call.fail_index("cu_query_lens", text(i),
                      join({"a bound of at most ", text(previous + sequences.max_query_len), " (", text(previous),
                            " + max_query_len)"}),
                      bounds[i]);
    }
    previous = bounds[i];
  }
}

// Returns a bit set of the last q_len keys of a sequence, which are at most 64: bit b is set if some query token sees
// key length - q_len + b.
uint64_t masked_keys(const HostSequences& host, const AttentionOptions& options, int64_t sequence, int64_t q_len) {
  const int64_t first_position = host.lengths[sequence] - q_len;
  uint64_t keys = 0;
  for (int64_t i = std::max<int64_t>(0, -first_position); i < q_len; ++i) {
    const int64_t first_bit = options.window_left < 0 ? 0 : std::max<int64_t>(0, i - options.window_left);
    keys |= static_cast<uint64_t>(host.mask[host.query_begin(sequence) + i]) & (~uint64_t{0} << first_bit);
  }
  return keys;
}

// Checks the blocks of the keys [begin, end) of a sequence.
void check_blocks_of_keys(const Call& call, const HostIndices& table, const Blocks& blocks,
                          std::string_view block_table_name, int64_t sequence, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t block_size = blocks.block_size.signed_value();
  const int64_t first = begin / block_size, last = (end - 1) / block_size;
  const int64_t bad = first_outside(table.view().row(sequence).from(first), last - first + 1, 0, blocks.num_blocks);
  if (bad < 0) return;
  call.fail_index(block_table_name, join({text(sequence), ", ", text(first + bad)}),
                  range_text("block", blocks.num_blocks), table.at(sequence, first + bad));
}

void check_blocks(const Call& call, const AttentionSequences& sequences, const AttentionOptions& options,
                  const Blocks& blocks, std::string_view block_table_name, const HostSequences& host) {
  for (int64_t s = 0; s < sequences.num_sequences; ++s) {
    const int64_t q_len = host.query_len(s), length = host.lengths[s];
    if (q_len == 0) continue;
    const int64_t first_position = std::max<int64_t>(0, length - q_len);
    const int64_t begin = options.window_left < 0 ? 0 : std::max<int64_t>(0, first_position - options.window_left);
    const int64_t end = host.mask.is_given() ? first_position : length;
    check_blocks_of_keys(call, host.table, blocks, block_table_name, s, begin, end);
    if (!host.mask.is_given()) continue;
    const uint64_t keys = masked_keys(host, options, s, q_len);
    for (int64_t key = first_position; key < length; ++key) {
      const bool is_visible = (keys >> (key - (length - q_len)) & 1) != 0;
      if (is_visible) check_blocks_of_keys(call, host.table, blocks, block_table_name, s, key, key + 1);
    }
  }
}

}  // namespace

AttentionSequences make_attention_sequences(Call& call, const Blocks& blocks, int64_t num_rows,
                                            const AttentionSequenceArguments& arguments) {
  AttentionSequences sequences{};
  sequences.num_rows = num_rows;
  sequences.seq_lens = indices_of(call, "seq_lens", arguments.seq_lens, 1);
  sequences.num_sequences = arguments.seq_lens.size(0);
  sequences.block_table = indices_of(call, arguments.block_table_name, arguments.block_table, 2);
  check_min_size(call, arguments.block_table_name, arguments.block_table, 0, sequences.num_sequences,
                 "elements of seq_lens");
  sequences.blocks_per_sequence = arguments.block_table.size(1);
  if (arguments.cu_query_lens.has_value()) {
    sequences.cu_query_lens = indices_of(call, "cu_query_lens", *arguments.cu_query_lens, 1);
    check_size(call, "cu_query_lens", *arguments.cu_query_lens, 0, sequences.num_sequences + 1,
               "elements of seq_lens + 1");
  }
  const int64_t shortest = arguments.cu_query_lens.has_value() ? -1 : 1;
  const auto check_bound = [&](std::string_view name, int64_t value, int64_t least) {
    if (value < least && value != -1) call.fail(name, join({"at least ", text(least), ", or -1"}), text(value));
  };
  check_bound("max_query_len", arguments.max_query_len, std::max<int64_t>(0, shortest));
  check_bound("max_seq_len", arguments.max_seq_len, 0);
  const bool is_query_len_free = arguments.max_query_len < 0 && shortest < 0;
  sequences.max_query_len = shortest > 0 ? 1 : is_query_len_free ? num_rows : arguments.max_query_len;
  const int64_t num_slots = wrapping_product(sequences.blocks_per_sequence, blocks.block_size.signed_value());
  sequences.max_seq_len = arguments.max_seq_len < 0 ? num_slots : std::min(arguments.max_seq_len, num_slots);
  return sequences;
}

void check_attention_sequences(Call& call, const AttentionSequences& sequences, const AttentionOptions& options,
                               const Blocks& blocks, std::string_view block_table_name) {
  if (sequences.num_sequences == 0) call.set_nothing_to_do();
  if (call.nothing_to_do() || !checks_indices(call)) return;
  const HostSequences host(call, sequences, options);
  check_lengths(call, sequences, blocks.block_size.signed_value(), host.lengths);
  check_bounds(call, sequences, host.bounds);
  check_blocks(call, sequences, options, blocks, block_table_name, host);
}

}  // namespace multikv
