// Rotates vectors of bfloat16 elements, with the results of Rope (rotate.h) in fewer steps.
#pragma once

#include "cpu/isa/codec/bfloat16_vectors.h"
#include "cpu/isa/codec/rope_table.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// The factors that TameRounding needs beside the values of a RopeTable.
struct TameRopeTable {
  RopeTable scaled, split;
  // Whether TameRounding can be used for tame elements, multiplied by tame weights or not, that are rotated by this
  // table. The magnitudes of the cosines and sines must be zero or from 2^-30 to 2^10. The cosine and the sine of a
  // pair must not both be zero: TameRounding may turn a product of -0 into +0, which would change the sign of a sum of
  // two zeros.
  bool is_tame = true;

  // If the table is not tame, its NaNs are replaced by one whose lower 16 bits are zeros, as AnyRounding requires.
  void fill(RopeTable& table, int64_t count, RopeOrder order) {
    const int64_t length = order == RopeOrder::kInOrder ? count : count / 2;
    is_tame = true;
    for (int half = 0; half < (order == RopeOrder::kInOrder ? 1 : 2); ++half) {
      fill(half, table, length);
      if (!is_tame) return replace_nans(table);
    }
  }

 private:
  static int32_t magnitude(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }
  static bool is_wild(int32_t magnitude) {
    constexpr int32_t kSmallest = (127 - 30) << 23, kLargest = (127 + 10) << 23;
    return (magnitude != 0) & ((magnitude < kSmallest) | (magnitude > kLargest));
  }

  void fill(int half, const RopeTable& table, int64_t length) {
    int32_t num_wild = 0;
    for (int64_t i = 0; i < length; ++i) {
      const float cos = table.cos[half][i], sin = table.sin[half][i];
      const int32_t cos_magnitude = magnitude(cos), sin_magnitude = magnitude(sin);
      num_wild += is_wild(cos_magnitude) | is_wild(sin_magnitude) | ((cos_magnitude | sin_magnitude) == 0);
      scaled.cos[half][i] = cos * 0x1p16f, split.cos[half][i] = cos * 0x10001p0f;
      scaled.sin[half][i] = sin * 0x1p16f, split.sin[half][i] = sin * 0x10001p0f;
    }
    is_tame = is_tame && num_wild == 0;
  }
  static void replace_nans(RopeTable& table) {
    for (auto* values : {&table.cos, &table.sin}) {
      for (auto& half : *values) {
        for (float& value : half) value = value == value ? value : __builtin_nanf("");
      }
    }
  }
};

// source(i) returns the elements i .. i + kWords - 1 of a head.
template <class Source>
concept WordSource = requires(const Source& source, int64_t i) {
  { source(i) } -> std::same_as<EvenOdd>;
};
// put(i, words) writes the elements i .. i + kWords - 1 of the rotated head.
template <class Put>
concept WordPut = requires(const Put& put, int64_t i, Bytes words) { put(i, words); };

// The pairs of a head that are rotated: `count` pairs from pair `begin` on, of num_pairs in all. Element `offset` is
// the first element of pair 0.
struct RotatedPairs {
  int64_t offset, begin, count, num_pairs;
};

template <Rounding Round, FloatElement Table>
class VectorRope {
 public:
  VectorRope(const RopeTable& values, const TameRopeTable& tame) : values_(values), tame_(tame) {}

  // If is_neox, pairs.count is a multiple of kWords, otherwise of kFloats.
  template <WordSource Source, WordPut Put>
  [[gnu::always_inline]] void operator()(const Source& source, const Put& put, const RotatedPairs& pairs,
                                         bool is_neox) const {
    if (is_neox) rotate_halves(source, put, pairs);
    else rotate_neighbours(source, put, pairs);
  }

 private:
  struct Pair {
    Floats x, y;
  };

  // The order of the table is kAlternating.
  template <WordSource Source, WordPut Put>
  [[gnu::always_inline]] void rotate_halves(const Source& source, const Put& put, const RotatedPairs& pairs) const {
    const int64_t first = pairs.offset + pairs.begin, second = first + pairs.num_pairs;
    for (int64_t i = 0; i < pairs.count; i += kWords) {
      const EvenOdd x = source(first + i), y = source(second + i);
      const Pair even = rotate({x.even, y.even}, 0, i / 2), odd = rotate({x.odd, y.odd}, 1, i / 2);
      put(first + i, narrow({even.x, odd.x}));
      put(second + i, narrow({even.y, odd.y}));
    }
  }
  // The order of the table is kInOrder.
  template <WordSource Source, WordPut Put>
  [[gnu::always_inline]] void rotate_neighbours(const Source& source, const Put& put, const RotatedPairs& pairs) const {
    const int64_t first = pairs.offset + 2 * pairs.begin;
    for (int64_t i = 0; i < pairs.count; i += kFloats) {
      const EvenOdd from = source(first + 2 * i);
      const Pair pair = rotate({from.even, from.odd}, 0, i);
      put(first + 2 * i, narrow({pair.x, pair.y}));
    }
  }

  [[gnu::always_inline]] Pair rotate(const Pair& pair, int half, int64_t i) const {
    const Factor cos = {&values_.cos[half][i], &tame_.scaled.cos[half][i], &tame_.split.cos[half][i]};
    const Factor sin = {&values_.sin[half][i], &tame_.scaled.sin[half][i], &tame_.split.sin[half][i]};
    return {Round::rounded(difference(multiplied(pair.x, cos), multiplied(pair.y, sin))),
            Round::rounded(sum(multiplied(pair.y, cos), multiplied(pair.x, sin)))};
  }
  // Products with a table of float32 are not rounded to bfloat16.
  [[gnu::always_inline]] static Floats multiplied(Floats x, const Factor& factor) {
    if constexpr (std::same_as<Table, BFloat16>) return Round::rounded_product(x, factor);
    else return product(x, load_floats(factor.value));
  }

  const RopeTable& values_;
  const TameRopeTable& tame_;
};

// Whether VectorRope takes this many pairs.
inline bool takes_pairs(int64_t num_pairs, bool is_neox) { return num_pairs % (is_neox ? kWords : kFloats) == 0; }

// Whether all elements of the pairs are tame.
inline bool are_tame(const char* head, const RotatedPairs& pairs, bool is_neox) {
  TameElements elements;
  const auto add = [&](int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; i += kWords) elements.add(load(head + 2 * i));
  };
  if (is_neox) {
    add(pairs.offset + pairs.begin, pairs.count);
    add(pairs.offset + pairs.begin + pairs.num_pairs, pairs.count);
  } else {
    add(pairs.offset + 2 * pairs.begin, 2 * pairs.count);
  }
  return elements.are_all();
}

// Rows that are rotated in place, `stride_bytes` apart.
struct RotatedRows {
  char* data;
  int64_t num_rows, stride_bytes;
};

template <FloatElement Table>
void rotate_vectors(const RotatedRows& rows, RopeTable& table, const RotatedPairs& pairs, bool is_neox) {
  TameRopeTable tame;
  tame.fill(table, pairs.count, is_neox ? RopeOrder::kAlternating : RopeOrder::kInOrder);
  for (int64_t k = 0; k < rows.num_rows; ++k) {
    char* row = rows.data + k * rows.stride_bytes;
    const auto source = [row](int64_t i) { return widen(load(row + 2 * i)); };
    const auto put = [row](int64_t i, Bytes words) { store(row + 2 * i, words); };
    if (tame.is_tame && are_tame(row, pairs, is_neox)) {
      VectorRope<TameRounding, Table>(table, tame)(source, put, pairs, is_neox);
    } else {
      VectorRope<AnyRounding, Table>(table, tame)(source, put, pairs, is_neox);
    }
  }
}

}  // namespace
}  // namespace multikv::cpu

#endif
