// Lists of tensors and of numbers, as arguments of ops.
#pragma once

#include <optional>
#include <vector>

#include "frontend/torch/tensor.h"

namespace multikv {

template <class Item>
struct ListOf {
  std::vector<Item> items;

  int64_t size() const { return static_cast<int64_t>(items.size()); }
  const Item& operator[](int64_t i) const { return items[i]; }
};

// `Tensor[]` and `Tensor(a!)[]` in the schema.
using TensorList = ListOf<Tensor>;
using MutableTensorList = ListOf<MutableTensor>;
// `int[]` and `int[]?` in the schema.
using IntList = ListOf<int64_t>;
using OptionalIntList = std::optional<IntList>;

}  // namespace multikv
