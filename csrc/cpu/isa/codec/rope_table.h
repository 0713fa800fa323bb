// Conversions and tables for rotary position embedding (rotate.h). The results are those of eager PyTorch: each of its
// operations rounds its result to the dtype of the result, and no multiplication is fused with an addition.
#pragma once

#include "cpu/isa/codec/bfloat16_vectors.h"
#include "cpu/isa/codec/elements.h"

namespace multikv::cpu {
namespace {

template <class Value>
inline Value load_as(const char* from, int64_t i) {
  Value value;
  std::memcpy(&value, from + i * static_cast<int64_t>(sizeof value), sizeof value);
  return value;
}
template <class Value>
inline void store_as(char* to, int64_t i, Value value) {
  std::memcpy(to + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
}

// Rounds to Rounded and widens again.
template <FloatElement Rounded>
[[gnu::flatten]] inline float rounded(float x) {
  return widen(narrow<Rounded>(x));
}
// If x is NaN, its lower 16 bits must be zeros, as they are after operations on bfloat16 values. Rounding then leaves
// it unchanged, so no test for NaN is necessary.
template <>
inline float rounded<BFloat16>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

// How a table stores the cosines (or sines) of pairs 0, 1, 2, 3, ...:
//
//   kInOrder       [0] holds pairs 0, 1, 2, 3, ...
//   kAlternating   [0] holds pairs 0, 2, ... and [1] holds pairs 1, 3, ...
//
// kAlternating serves loops over 32-bit words that hold the elements of pairs 2i (low half) and 2i + 1 (high half).
enum class RopeOrder : uint8_t { kInOrder, kAlternating };

// Cosines and sines of at most kMaxPairs pairs, as float32.
struct RopeTable {
  static constexpr int64_t kMaxPairs = 128;
  using Values = float[2][kMaxPairs];
  alignas(64) Values cos;
  alignas(64) Values sin;
};

template <FloatElement Table>
[[gnu::always_inline]] inline void fill(RopeTable::Values& to, const char* from, int64_t num_pairs, RopeOrder order) {
  if (order == RopeOrder::kInOrder) {
    for (int64_t i = 0; i < num_pairs; ++i) to[0][i] = widen(load_as<Table>(from, i));
    return;
  }
  int64_t i = 0;
#ifdef MULTIKV_HAS_SIMD
  if constexpr (std::same_as<Table, BFloat16>) {
    for (; i + kFloats <= num_pairs / 2; i += kFloats) {
      const EvenOdd pairs = widen(load(from + 4 * i));
      store(to[0] + i, as_ints(pairs.even));
      store(to[1] + i, as_ints(pairs.odd));
    }
  }
#endif
  for (; i < num_pairs / 2; ++i) {
    to[0][i] = widen(load_as<Table>(from, 2 * i));
    to[1][i] = widen(load_as<Table>(from, 2 * i + 1));
  }
  if (num_pairs % 2 != 0) to[0][num_pairs / 2] = widen(load_as<Table>(from, num_pairs - 1));
}

}  // namespace
}  // namespace multikv::cpu
