// Index tensors, in place: their values are not copied or converted.
#pragma once

#include <cstdint>

namespace multikv {

// An int32 or int64 tensor of one or two dimensions. `stride` is the distance between rows, in elements. `data` is
// nullptr if the argument was not given.
struct Indices {
  const void* data;
  int64_t stride;
  bool is_int64;

  constexpr bool is_given() const { return data != nullptr; }
  constexpr int64_t at(int64_t i) const {
    return is_int64 ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  constexpr int64_t at(int64_t row, int64_t column) const { return at(row * stride + column); }
  constexpr Indices row(int64_t i) const {
    return {static_cast<const char*>(data) + i * stride * (is_int64 ? 8 : 4), 0, is_int64};
  }
  // The indices from column i on.
  constexpr Indices from(int64_t i) const {
    return {static_cast<const char*>(data) + i * (is_int64 ? 8 : 4), stride, is_int64};
  }
};

}  // namespace multikv
