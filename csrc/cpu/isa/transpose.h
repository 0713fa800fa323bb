// Transposing tiles in registers.
#pragma once

#include <utility>

#include "vec.h"

namespace multikv::cpu {
namespace {

// Vectors of elements, in lanes of 16 bytes.
template <class Element>
struct Lanes {
  static constexpr int kPerLane = 16 / sizeof(Element);
  static constexpr int kPerVector = sizeof(Bytes) / sizeof(Element);
  typedef Element Vector __attribute__((vector_size(sizeof(Bytes))));

  // Lane by lane, the first (or last) halves of a and b, element by element in turn.
  template <bool kLast, int... kIndex>
  static Vector interleave(Vector a, Vector b, std::integer_sequence<int, kIndex...>) {
    return __builtin_shufflevector(a, b,
                                   (kIndex / kPerLane * kPerLane + (kLast ? kPerLane / 2 : 0) + kIndex % kPerLane / 2 +
                                    kIndex % 2 * kPerVector)...);
  }
  template <bool kLast>
  static Vector interleave(Vector a, Vector b) {
    return interleave<kLast>(a, b, std::make_integer_sequence<int, kPerVector>());
  }
};

// Element j of row i of `to` = element i of from[j], for i < kPerVector, j < kPerLane. Rows are to_stride bytes apart.
template <class Element>
inline void transpose_tile(char* to, int64_t to_stride, const char* const* from) {
  using L = Lanes<Element>;
  constexpr int kCount = L::kPerLane;
  typename L::Vector rows[kCount];
#pragma GCC unroll 16
  for (int j = 0; j < kCount; ++j) std::memcpy(&rows[j], from[j], sizeof rows[j]);
  // Each step doubles the number of rows that lie together.
#pragma GCC unroll 4
  for (int step = 1; step < kCount; step *= 2) {
    typename L::Vector next[kCount];
#pragma GCC unroll 8
    for (int j = 0; j < kCount / 2; ++j) {
      next[2 * j] = L::template interleave<false>(rows[j], rows[j + kCount / 2]);
      next[2 * j + 1] = L::template interleave<true>(rows[j], rows[j + kCount / 2]);
    }
#pragma GCC unroll 16
    for (int j = 0; j < kCount; ++j) rows[j] = next[j];
  }
#pragma GCC unroll 16
  for (int j = 0; j < kCount; ++j) {
#pragma GCC unroll 4
    for (int lane = 0; lane < L::kPerVector / kCount; ++lane) {
      std::memcpy(to + (lane * kCount + j) * to_stride, reinterpret_cast<const char*>(&rows[j]) + 16 * lane, 16);
    }
  }
}

}  // namespace
}  // namespace multikv::cpu
