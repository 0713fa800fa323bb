#include "indices.h"

#include <algorithm>
#include <vector>

namespace multikv {

namespace {

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
  const void* data() const { return view_.data; }
  bool given() const { return view_.data != nullptr; }
  int64_t operator[](int64_t i) const { return view_.at(i); }
  int64_t at(int64_t row, int64_t column) const { return view_.at(row, column); }

 private:
  Indices view_;
  std::vector<char> copy_;
};

template <class Index>
int64_t largest(const Index* values, int64_t count) {
  Index result = -1;
  for (int64_t i = 0; i < count; ++i) result = std::max(result, values[i]);
  return result;
}

}  // namespace

void check_slots(const Call& call, std::string_view argument, const Indices& slots, int64_t num_tokens,
                 int64_t num_slots) {
  if (!call.backend().checks_indices(call.device_index())) return;
  const HostIndices host(call, slots, 1, num_tokens);
  const void* data = host.data();
  const int64_t highest = slots.is_int64 ? largest(static_cast<const int64_t*>(data), num_tokens)
                                         : largest(static_cast<const int32_t*>(data), num_tokens);
  if (highest < num_slots) return;
  for (int64_t i = 0;; ++i) {
    if (host[i] >= num_slots) {
      call.fail_index(argument, std::to_string(i), "a slot below " + std::to_string(num_slots), host[i]);
    }
  }
}

void check_sequences(const Call& call, const Sequences& q) {
  if (!call.backend().checks_indices(call.device_index())) return;
  const HostIndices bounds(call, q.cu_seq_lens, 1, q.num_sequences + 1);
  const HostIndices starts(call, q.seq_starts, 1, q.num_sequences);
  const HostIndices table(call, q.block_table, q.num_sequences, q.blocks_per_sequence);

  int64_t previous = 0;
  for (int64_t s = 0; s <= q.num_sequences; ++s) {
    if (bounds[s] < previous || bounds[s] > q.num_tokens) {
      call.fail_index("cu_seq_lens", std::to_string(s),
                      "a bound from " + std::to_string(previous) + " to " + std::to_string(q.num_tokens) +
                          " (rows of the output)",
                      bounds[s]);
    }
    previous = bounds[s];
  }
  for (int64_t s = 0; s < q.num_sequences; ++s) {
    const int64_t start = starts.given() ? starts[s] : 0;
    if (start < 0) call.fail_index("seq_starts", std::to_string(s), "a position of at least 0", start);
    const int64_t length = bounds[s + 1] - bounds[s];
    const int64_t first = start / q.block_size;
    if (length == 0 || first >= q.blocks_per_sequence) continue;
    const uint64_t end = static_cast<uint64_t>(start) + static_cast<uint64_t>(length) - 1;
    const auto last = std::min(static_cast<int64_t>(end / q.block_size), q.blocks_per_sequence - 1);
    for (int64_t b = first; b <= last; ++b) {
      const int64_t block = table.at(s, b);
      if (block >= 0 && block < q.num_blocks) continue;
      call.fail_index("block_table", std::to_string(s) + ", " + std::to_string(b),
                      "a block from 0 to " + std::to_string(q.num_blocks - 1), block);
    }
  }
}

}  // namespace multikv
