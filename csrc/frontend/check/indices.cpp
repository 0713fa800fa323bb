#include "frontend/check/indices.h"

#include <algorithm>
#include <limits>

#include "frontend/check/shapes.h"

namespace multikv {

namespace {

constexpr int64_t kLowest = std::numeric_limits<int64_t>::min();

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

}  // namespace

int64_t first_outside(const Indices& indices, int64_t count, int64_t low, int64_t high) {
  const bool is_good = indices.is_int64 ? all_within(static_cast<const int64_t*>(indices.data), count, low, high)
                                        : all_within(static_cast<const int32_t*>(indices.data), count, low, high);
  if (is_good) return -1;
  for (int64_t i = 0;; ++i) {
    if (indices.at(i) < low || indices.at(i) >= high) return i;
  }
}

HostIndices::HostIndices(const Call& call, const Indices& indices, int64_t rows, int64_t columns) : view_(indices) {
  if (call.backend().read_to_host == nullptr || !indices.is_given() || rows == 0 || columns == 0) return;
  const int64_t count = (rows - 1) * indices.stride + columns;
  copy_.resize(count * (indices.is_int64 ? 8 : 4));
  call.backend().read_to_host(copy_.data(), indices.data, static_cast<int64_t>(copy_.size()), call.device_index());
  view_.data = copy_.data();
}

bool checks_indices(const Call& call) { return call.backend().checks_indices(call.device_index()); }

Indices indices_of(Call& call, std::string_view argument, const Tensor& tensor, int64_t dim) {
  call.check_device(argument, tensor);
  return indices_on_any_device(call, argument, tensor, dim);
}

Indices indices_on_any_device(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim) {
  check_dim(call, argument, tensor, dim);
  if (tensor.dtype() != Dtype::kInt32 && tensor.dtype() != Dtype::kInt64) {
    call.fail(argument, "dtype int32 or int64", dtype_text(tensor));
  }
  check_inner_stride(call, argument, tensor);
  return {data(call, argument, tensor), dim > 1 ? tensor.stride(0) : 0, tensor.dtype() == Dtype::kInt64};
}

Slots make_slots(Call& call, const Tensor& slot_mapping, int64_t dim) {
  const Indices mapping = indices_of(call, "slot_mapping", slot_mapping, dim);
  return {mapping, slot_mapping.size(dim - 1)};
}

void check_slots(Call& call, const Slots& slots, const Blocks& blocks) {
  if (slots.num_tokens == 0) call.set_nothing_to_do();
  if (call.nothing_to_do() || !checks_indices(call)) return;
  const HostIndices host(call, slots.mapping, 1, slots.num_tokens);
  const int64_t i = first_outside(host.view(), slots.num_tokens, kLowest, blocks.num_slots());
  if (i >= 0) call.fail_index("slot_mapping", text(i), "a slot below " + text(blocks.num_slots()), host[i]);
}

void check_slots_of_layers(Call& call, const Slots& slots, const Blocks& blocks, int64_t num_layers) {
  if (slots.num_tokens == 0 || num_layers == 0) call.set_nothing_to_do();
  if (call.nothing_to_do() || !checks_indices(call)) return;
  const HostIndices host(call, slots.mapping, num_layers, slots.num_tokens);
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const int64_t i = first_outside(host.view().row(layer), slots.num_tokens, kLowest, blocks.num_slots());
    if (i < 0) continue;
    call.fail_index("slot_mapping", join({text(layer), ", ", text(i)}), "a slot below " + text(blocks.num_slots()),
                    host.at(layer, i));
  }
}

void check_positions(const Call& call, const Indices& positions, int64_t num_tokens, int64_t num_positions) {
  if (call.nothing_to_do() || !checks_indices(call)) return;
  const HostIndices host(call, positions, 1, num_tokens);
  const int64_t i = first_outside(host.view(), num_tokens, 0, num_positions);
  if (i >= 0) call.fail_index("positions", text(i), range_text("position", num_positions), host[i]);
}

void check_positions_of_rows(const Call& call, const Indices& positions, int64_t num_tokens, int64_t num_positions) {
  constexpr int64_t kRows = 3;
  if (call.nothing_to_do() || !checks_indices(call)) return;
  const HostIndices host(call, positions, kRows, num_tokens);
  for (int64_t row = 0; row < kRows; ++row) {
    const int64_t i = first_outside(host.view().row(row), num_tokens, 0, num_positions);
    if (i < 0) continue;
    call.fail_index("positions", join({text(row), ", ", text(i)}), range_text("position", num_positions),
                    host.at(row, i));
  }
}

}  // namespace multikv
