// Sums of floats in the order of the tree of RmsNorm (params/norm_rope_params.h), in vector registers.
#pragma once

#include "cpu/isa/codec/bfloat16_vectors.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// The levels of the tree within a vector: log2(kFloats).
constexpr int kVectorLevels = kFloats == 8 ? 3 : 4;
static_assert(1 << kVectorLevels == kFloats);

// vector_of(i) is vector i of an input.
template <class VectorOf>
concept VectorSource = requires(const VectorOf& vector_of, int64_t i, Floats x) { x = vector_of(i); };

// Returns the sums of 2^kLevel vectors from vector `first` on. Element i of the result is the sum of vector first + i
// if kLevel is kVectorLevels. On lower levels, the result holds 2^(kVectorLevels - kLevel) partial sums for each
// vector. With AVX2, where a0 .. a7 is a vector and a03 is the sum of a0 to a3:
//
//   level 1   a01 a23 b01 b23 | a45 a67 b45 b67
//   level 2   a03 b03 c03 d03 | a47 b47 c47 d47
//   level 3   a07 b07 c07 d07 | e07 f07 g07 h07
template <int kLevel = kVectorLevels, VectorSource VectorOf>
[[gnu::always_inline]] inline Floats sums_of_vectors(const VectorOf& vector_of, int64_t first) {
  if constexpr (kLevel == 0) {
    return vector_of(first);
  } else {
    const Floats a = sums_of_vectors<kLevel - 1>(vector_of, first);
    const Floats b = sums_of_vectors<kLevel - 1>(vector_of, first + (1 << (kLevel - 1)));
    return kLevel <= 2 ? sums_of_neighbours(a, b) : sums_of_segments(a, b);
  }
}

// Writes the sum of each of `count` vectors. `to` has space for a multiple of kFloats sums.
template <VectorSource VectorOf>
[[gnu::always_inline]] inline void sum_vectors(float* to, const VectorOf& vector_of, int64_t count) {
  int64_t i = 0;
  for (; i + kFloats <= count; i += kFloats) store(to + i, as_ints(sums_of_vectors(vector_of, i)));
  if (i == count) return;
  const auto vector_or_zeros = [&](int64_t k) { return k < count ? vector_of(k) : all(0.0f); };
  store(to + i, as_ints(sums_of_vectors(vector_or_zeros, i)));
}

}  // namespace
}  // namespace multikv::cpu

#endif
