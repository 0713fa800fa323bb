// Transposing tiles in registers.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

// Vectors of elements of 1 to 16 bytes, in lanes of 16 bytes.
template <class Element>
struct Lanes {
  static constexpr int kBytes = sizeof(Element);
  static constexpr int kPerLane = 16 / kBytes;
  using Word = std::conditional_t<kBytes == 16, uint64_t, Element>;
  static constexpr int kWords = sizeof(Bytes) / sizeof(Word);
  typedef Word Vector __attribute__((vector_size(sizeof(Bytes))));

  // Lane by lane, the first (or last) halves of a and b, element by element in turn.
  template <bool kLast, int... kIndex>
  static Vector interleave(Vector a, Vector b, std::integer_sequence<int, kIndex...>) {
    return __builtin_shufflevector(
        a, b,
        (kIndex / kPerLane * kPerLane + (kLast ? kPerLane / 2 : 0) + kIndex % kPerLane / 2 + kIndex % 2 * kWords)...);
  }
  template <bool kLast>
  static Vector interleave(Vector a, Vector b) {
    return interleave<kLast>(a, b, std::make_integer_sequence<int, kWords>());
  }

  // to[j], lane l: elements l * kPerLane + j of all of from[0 .. kPerLane).
  [[gnu::always_inline]] static void transpose(Vector (&to)[kPerLane], const char* const (&from)[kPerLane]) {
#pragma GCC unroll 16
    for (int j = 0; j < kPerLane; ++j) std::memcpy(&to[j], from[j], sizeof to[j]);
    // Each step doubles the number of elements from different vectors that lie together.
#pragma GCC unroll 4
    for (int step = 1; step < kPerLane; step *= 2) {
      Vector next[kPerLane];
#pragma GCC unroll 8
      for (int j = 0; j < kPerLane / 2; ++j) {
        next[2 * j] = interleave<false>(to[j], to[j + kPerLane / 2]);
        next[2 * j + 1] = interleave<true>(to[j], to[j + kPerLane / 2]);
      }
#pragma GCC unroll 16
      for (int j = 0; j < kPerLane; ++j) to[j] = next[j];
    }
  }
};

constexpr int kNumLanes = sizeof(Bytes) / 16;

template <int kCount>
struct OfLanes {
  typedef uint64_t Vector __attribute__((vector_size(16 * kCount)));
};

// Lane i of vector j becomes lane j of vector i.
template <int kCount, class Vector = typename OfLanes<kCount>::Vector>
[[gnu::always_inline]] inline void transpose_lanes(Vector (&v)[kCount]) {
  if constexpr (kCount == 2) {
    const Vector a = v[0], b = v[1];
    v[0] = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    v[1] = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  } else if constexpr (kCount == 4) {
    const Vector a = __builtin_shufflevector(v[0], v[1], 0, 1, 2, 3, 8, 9, 10, 11);
    const Vector b = __builtin_shufflevector(v[0], v[1], 4, 5, 6, 7, 12, 13, 14, 15);
    const Vector c = __builtin_shufflevector(v[2], v[3], 0, 1, 2, 3, 8, 9, 10, 11);
    const Vector d = __builtin_shufflevector(v[2], v[3], 4, 5, 6, 7, 12, 13, 14, 15);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5, 8, 9, 12, 13);
    v[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7, 10, 11, 14, 15);
    v[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5, 8, 9, 12, 13);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7, 10, 11, 14, 15);
  }
}

}  // namespace
}  // namespace multikv::cpu
