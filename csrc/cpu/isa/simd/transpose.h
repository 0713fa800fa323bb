// Transposes matrices in vector registers. A vector is a sequence of 128-bit segments.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

constexpr int kSegmentBytes = 16;
constexpr int kNumSegments = sizeof(Bytes) / kSegmentBytes;

// A unit of 16 bytes.
struct Bytes16 {
  uint64_t words[2];
};

// Loads the segments of a vector, which are `stride` bytes apart.
inline Bytes load_segments(const char* from, int64_t stride) {
#if defined(__AVX2__)
  const auto load_two = [stride](const char* at) {
    return _mm256_loadu2_m128i(reinterpret_cast<const __m128i*>(at + stride), reinterpret_cast<const __m128i*>(at));
  };
#if defined(__AVX512BW__)
  return _mm512_inserti64x4(_mm512_castsi256_si512(load_two(from)), load_two(from + 2 * stride), 1);
#else
  return load_two(from);
#endif
#else
  (void)stride;
  return load(from);
#endif
}

// A segment holds kPerSegment units of 1 to 16 bytes. In kPerSegment vectors, the segments 0 form a square matrix of
// units, the segments 1 form another one, and so on. transpose() transposes all these matrices at once. With units of
// four bytes and the vectors a, b, c and d:
//
//          segment 0     segment 1               segment 0     segment 1
//   from   a0 a1 a2 a3 | a4 a5 a6 a7 ..     to   a0 b0 c0 d0 | a4 b4 c4 d4 ..
//          b0 b1 b2 b3 | b4 b5 b6 b7 ..          a1 b1 c1 d1 | a5 b5 c5 d5 ..
//          c0 c1 c2 c3 | c4 c5 c6 c7 ..          a2 b2 c2 d2 | a6 b6 c6 d6 ..
//          d0 d1 d2 d3 | d4 d5 d6 d7 ..          a3 b3 c3 d3 | a7 b7 c7 d7 ..
//
// A vector has kVectorBytes bytes: as many as a register, or one segment.
template <class Unit, int kVectorBytes = sizeof(Bytes)>
  requires(sizeof(Unit) <= kSegmentBytes && kSegmentBytes % sizeof(Unit) == 0 && kVectorBytes % kSegmentBytes == 0)
struct Segments {
  static constexpr int kBytes = sizeof(Unit);
  static constexpr int kPerSegment = kSegmentBytes / kBytes;
  // The element type of Vector. A unit of 16 bytes is two scalars; such units are never interleaved.
  using Scalar = std::conditional_t<kBytes == kSegmentBytes, uint64_t, Unit>;
  static constexpr int kNumScalars = kVectorBytes / sizeof(Scalar);
  typedef Scalar Vector __attribute__((vector_size(kVectorBytes)));

  // In each segment, the units of the first (or last) half of a's segment alternate with those of b's.
  template <bool kLast, int... kIndex>
  static Vector interleave(Vector a, Vector b, std::integer_sequence<int, kIndex...>) {
    return __builtin_shufflevector(a, b,
                                   (kIndex / kPerSegment * kPerSegment + (kLast ? kPerSegment / 2 : 0) +
                                    kIndex % kPerSegment / 2 + kIndex % 2 * kNumScalars)...);
  }
  template <bool kLast>
  static Vector interleave(Vector a, Vector b) {
    return interleave<kLast>(a, b, std::make_integer_sequence<int, kNumScalars>());
  }

  [[gnu::always_inline]] static void transpose(Vector (&vectors)[kPerSegment]) {
    // Each step interleaves vector j with vector j + kPerSegment / 2. For the vectors a, b, c and d:
    //
    //   step 1   a0 c0 a1 c1   a2 c2 a3 c3   b0 d0 b1 d1   b2 d2 b3 d3
    //   step 2   a0 b0 c0 d0   a1 b1 c1 d1   a2 b2 c2 d2   a3 b3 c3 d3
#pragma GCC unroll 4
    for (int step = 1; step < kPerSegment; step *= 2) {
      Vector next[kPerSegment];
#pragma GCC unroll 8
      for (int j = 0; j < kPerSegment / 2; ++j) {
        next[2 * j] = interleave<false>(vectors[j], vectors[j + kPerSegment / 2]);
        next[2 * j + 1] = interleave<true>(vectors[j], vectors[j + kPerSegment / 2]);
      }
#pragma GCC unroll 16
      for (int j = 0; j < kPerSegment; ++j) vectors[j] = next[j];
    }
  }
};

template <int kCount>
struct SegmentVector {
  typedef uint64_t Type __attribute__((vector_size(kSegmentBytes * kCount)));
};

// Transposes whole segments: segment i of vector j becomes segment j of vector i. kCount: 1, 2 or 4.
template <int kCount, class Vector = typename SegmentVector<kCount>::Type>
[[gnu::always_inline]] inline void transpose_segments(Vector (&v)[kCount]) {
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
