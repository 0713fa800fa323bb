#include "frontend/check/indices.h"

#include <algorithm>
#include <limits>
#include <vector>

namespace multikv {

namespace {

constexpr int64_t kLowest = std::numeric_limits<int64_t>::min(), kHighest = std::numeric_limits<int64_t>::max();

// Indices that the host can read: the caller's own, or a copy of what is on the device.
class HostIndices {
 public:
  HostIndices(const Call& call, const Indices& indices, int64_t rows, int64_t columns) : view_(indices) {
    if (call.backend().read_to_host == nullptr || indices.data == nullptr || rows == 0 || columns == 0) return;
    const int64_t count = (rows - 1) * indices.stride + columns;
    copy_.resize(count * (indices.is_int64 ? 8 : 4));
    call.backend().read_to_host(copy_.data(), indices.data, static_cast<int64_t>(copy_.size()), call.device_index());
    view_.data = copy_.data();
  }
  const Indices& view() const { return view_; }
  bool given() const { return view_.data != nullptr; }
  int64_t operator[](int64_t i) const { return view_.at(i); }
  int64_t at(int64_t row, int64_t column) const { return view_.at(row, column); }

 private:
  Indices view_;
  std::vector<char> copy_;
};

template <class Index>
bool all_within(const Index* values, int64_t count, int64_t low, int64_t high) {
  if (count == 0) return true;
  Index least = values[0], most = values[0];
  for (int64_t i = 1; i < count; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  return least >= low && most < high;
}

// The first of them that is not from low to high - 1, or -1.
int64_t first_outside(const Indices& indices, int64_t count, int64_t low, int64_t high) {
  const bool is_good = indices.is_int64 ? all_within(static_cast<const int64_t*>(indices.data), count, low, high)
                                        : all_within(static_cast<const int32_t*>(indices.data), count, low, high);
  if (is_good) return -1;
  for (int64_t i = 0;; ++i) {
    if (indices.at(i) < low || indices.at(i) >= high) return i;
  }
}

std::string text(int64_t number) { return std::to_string(number); }

// Calls body(sequence, column of its table, first offset in that block, end offset) for the blocks that rows need.
template <class Body>
void for_each_needed_block(const Sequences& q, const HostIndices& bounds, const HostIndices& starts, const Body& body) {
  const auto block_size = static_cast<int64_t>(q.block_size.value);
  for (int64_t s = 0; s < q.num_sequences; ++s) {
    const int64_t start = starts.given() ? starts[s] : 0;
    const int64_t end = s + 1 < q.num_bounds ? std::min(bounds[s + 1], q.num_tokens) : q.num_tokens;
    const int64_t length = end - bounds[s];
    const int64_t first = start / block_size;
    if (length <= 0 || first >= q.blocks_per_sequence) continue;
    // The sum of two numbers that are not negative fits an unsigned one.
    const uint64_t last_position = static_cast<uint64_t>(start) + static_cast<uint64_t>(length) - 1;
    const auto last = static_cast<int64_t>(last_position / block_size);
    for (int64_t b = first; b <= std::min(last, q.blocks_per_sequence - 1); ++b) {
      body(s, b, b == first ? start % block_size : 0,
           b == last ? static_cast<int64_t>(last_position % block_size) + 1 : block_size);
    }
  }
}

void check_bounds(const Call& call, const Sequences& q, const BoundsRule& rule, const HostIndices& bounds) {
  const int64_t limit = rule.may_pass_the_end ? kHighest : q.num_tokens;
  int64_t previous = 0;
  for (int64_t i = 0; i < q.num_bounds; ++i) {
    if (bounds[i] < previous || bounds[i] > limit) {
      const std::string expected =
          rule.may_pass_the_end ? "a bound of at least " + text(previous)
                                : "a bound from " + text(previous) + " to " + text(limit) + " (rows of the output)";
      call.fail_index(rule.argument, text(i), expected, bounds[i]);
    }
    previous = bounds[i];
  }
}

}  // namespace

Slots make_slots(Call& call, const Tensor& slot_mapping, int64_t dim) {
  Slots slots{};
  slots.mapping = call.indices("slot_mapping", slot_mapping, dim);
  slots.num_tokens = slot_mapping.size(dim - 1);
  return slots;
}

void set_blocks(const Call& call, Slots& slots, std::string_view cache_name, const Tensor& cache,
                int64_t block_size_dim) {
  slots.num_blocks = cache.size(0);
  slots.block_size = call.block_size(cache_name, cache, block_size_dim);
}

void check_slots(Call& call, const Slots& slots) {
  if (slots.num_tokens == 0) call.set_nothing_to_do();
  if (call.nothing_to_do() || !call.backend().checks_indices(call.device_index())) return;
  const HostIndices host(call, slots.mapping, 1, slots.num_tokens);
  const int64_t i = first_outside(host.view(), slots.num_tokens, kLowest, slots.num_slots());
  if (i >= 0) call.fail_index("slot_mapping", text(i), "a slot below " + text(slots.num_slots()), host[i]);
}

void check_slots_of_layers(Call& call, const Slots& slots, int64_t num_layers) {
  if (slots.num_tokens == 0 || num_layers == 0) call.set_nothing_to_do();
  if (call.nothing_to_do() || !call.backend().checks_indices(call.device_index())) return;
  const HostIndices host(call, slots.mapping, num_layers, slots.num_tokens);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const int64_t i = first_outside(host.view().row(layer), slots.num_tokens, kLowest, slots.num_slots());
    if (i < 0) continue;
    call.fail_index("slot_mapping", text(layer) + ", " + text(i), "a slot below " + text(slots.num_slots()),
                    host.at(layer, i));
  }
}

void check_positions(const Call& call, const Indices& positions, int64_t num_tokens, int64_t num_positions) {
  if (call.nothing_to_do() || !call.backend().checks_indices(call.device_index())) return;
  const HostIndices host(call, positions, 1, num_tokens);
  const int64_t i = first_outside(host.view(), num_tokens, 0, num_positions);
  if (i >= 0) call.fail_index("positions", text(i), "a position from 0 to " + text(num_positions - 1), host[i]);
}

Sequences make_sequences(Call& call, std::string_view cache_name, const Tensor& cache, const Tensor& block_table,
                         const std::optional<Tensor>& seq_starts) {
  Sequences q{};
  q.block_table = call.indices("block_table", block_table, 2);
  q.num_sequences = block_table.size(0);
  q.blocks_per_sequence = block_table.size(1);
  q.num_blocks = cache.size(0);
  q.block_size = call.block_size(cache_name, cache, 1);
  if (seq_starts.has_value()) {
    q.seq_starts = call.indices("seq_starts", *seq_starts, 1);
    call.check_size("seq_starts", *seq_starts, 0, q.num_sequences, "batch_size");
  }
  return q;
}

void check_batch_size(const Call& call, const Sequences& q, int64_t batch_size) {
  if (batch_size == q.num_sequences) return;
  call.fail("batch_size", text(q.num_sequences) + " (rows of block_table)", text(batch_size));
}

void set_cu_seq_lens(Call& call, Sequences& q, const Tensor& cu_seq_lens) {
  q.cu_seq_lens = call.indices("cu_seq_lens", cu_seq_lens, 1);
  q.num_bounds = q.num_sequences + 1;
  call.check_size("cu_seq_lens", cu_seq_lens, 0, q.num_bounds, "batch_size + 1");
}

void check_sequences(Call& call, const Sequences& q, const BoundsRule& rule, const RowIds* row_ids) {
  if (q.num_sequences == 0) call.set_nothing_to_do();
  if (call.nothing_to_do()) return;
  if (q.num_tokens == 0 || q.blocks_per_sequence == 0) call.set_nothing_to_do();
  if (!call.backend().checks_indices(call.device_index())) return;

  const HostIndices bounds(call, q.cu_seq_lens, 1, q.num_bounds);
  const HostIndices starts(call, q.seq_starts, 1, q.num_sequences);
  const HostIndices table(call, q.block_table, q.num_sequences, q.blocks_per_sequence);
  check_bounds(call, q, rule, bounds);
  for (int64_t s = 0; starts.given() && s < q.num_sequences; ++s) {
    if (starts[s] < 0) call.fail_index("seq_starts", text(s), "a position of at least 0", starts[s]);
  }
  for_each_needed_block(q, bounds, starts, [&](int64_t s, int64_t b, int64_t, int64_t) {
    const int64_t block = table.at(s, b);
    if (block >= 0 && block < q.num_blocks) return;
    call.fail_index("block_table", text(s) + ", " + text(b), "a block from 0 to " + text(q.num_blocks - 1), block);
  });
  if (row_ids == nullptr) return;

  const auto block_size = static_cast<int64_t>(q.block_size.value);
  const HostIndices host_rows(call, row_ids->host, 1, q.num_blocks * block_size);
  const HostIndices device_rows(call, row_ids->device, 1, q.num_blocks * block_size);
  for_each_needed_block(q, bounds, starts, [&](int64_t s, int64_t b, int64_t begin, int64_t end) {
    const int64_t first = table.at(s, b) * block_size;
    for (int64_t r = first + begin; r < first + end; ++r) {
      const int64_t device_row = device_rows[r];
      if (device_row >= row_ids->num_device_rows) {
        call.fail_index("device_row_ids", text(r), "a row below " + text(row_ids->num_device_rows), device_row);
      }
      if (device_row < 0 && host_rows[r] >= row_ids->num_host_rows) {
        call.fail_index("host_row_ids", text(r), "a row below " + text(row_ids->num_host_rows), host_rows[r]);
      }
    }
  });
}

}  // namespace multikv
