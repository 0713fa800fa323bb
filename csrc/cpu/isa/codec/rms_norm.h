// The root mean square norm of rows (params/norm_rope_params.h). With MULTIKV_HAS_SIMD, some loops are written
// with vector types. The compiler vectorises the others.
#pragma once

#include <utility>

#include "cpu/isa/codec/rotate.h"
#include "cpu/isa/codec/sum_tree.h"
#include "params/norm_rope_params.h"

namespace multikv::cpu {
namespace {

inline float square_root(float x) {
#if defined(__SSE2__)
  return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x)));  // without the call that sets errno
#else
  return __builtin_sqrtf(x);
#endif
}

// Rows of contiguous elements that are `stride_bytes` apart.
struct NormRows {
  const char* data;
  int64_t num_rows, stride_bytes;

  const char* row(int64_t i) const { return data + i * stride_bytes; }
};

// Computes sums of squares. The tree of additions of RmsNorm is computed level by level, for many rows at once, so that
// each level is a long loop without dependences.
template <FloatElement T>
class SumsOfSquares {
 public:
  // Writes the sum of squares of each row of `size` elements to `sums`.
  void operator()(float* sums, const NormRows& rows, int64_t size) {
    if (size > kMost) {
      for (int64_t i = 0; i < rows.num_rows; ++i) sums[i] = sum_of_long_row(rows.row(i), size);
      return;
    }
    const int64_t most_rows = kMost / size;
    for (int64_t i = 0; i < rows.num_rows; i += most_rows) {
      const int64_t left = rows.num_rows - i, count = left < most_rows ? left : most_rows;
      add_rows(sums + i, {rows.row(i), count, rows.stride_bytes}, size);
    }
  }

 private:
  static constexpr int64_t kMost = 4096;  // the elements that are processed at a time: a power of two

  // Writes the sums of the squares of neighbours, (count + 1) / 2 numbers.
  static void add_squares(float* __restrict to, const char* __restrict from, int64_t count) {
    for (int64_t i = 0; i < count / 2; ++i) {
      float a, b;
      if constexpr (FloatOf16Bits<T>) {
        const auto word = load_as<uint32_t>(from, i);
        a = low<T>(word), b = high<T>(word);
      } else {
        a = load_as<T>(from, 2 * i), b = load_as<T>(from, 2 * i + 1);
      }
      to[i] = a * a + b * b;
    }
    if (count % 2 == 0) return;
    const float last = widen(load_as<T>(from, count - 1));
    to[count / 2] = last * last;
  }

  static void add_neighbours(float* __restrict to, const float* __restrict from, int64_t count) {
    for (int64_t i = 0; i < count / 2; ++i) to[i] = from[2 * i] + from[2 * i + 1];
    if (count % 2 != 0) to[count / 2] = from[count - 1];
  }

  // Adds the squares of each group of 2 or kWords neighbours of each row, and writes the sums of all rows contiguously
  // to `to`. Returns the number of sums of a row.
  static int64_t add_squares(float* to, const NormRows& rows, int64_t size) {
    int64_t group = 2;
    auto* add_row = static_cast<void (*)(float*, const char*, int64_t)>(add_squares);
#ifdef MULTIKV_HAS_SIMD
    if constexpr (std::same_as<T, BFloat16>) {
      if (size % kWords == 0) group = kWords, add_row = add_squares_of_vectors;
    }
#endif
    const int64_t left = (size + group - 1) / group;
    if (rows.stride_bytes == size * static_cast<int64_t>(sizeof(T)) && size % group == 0) {
      add_row(to, rows.data, rows.num_rows * size);
    } else {
      for (int64_t i = 0; i < rows.num_rows; ++i) add_row(to + i * left, rows.row(i), size);
    }
    return left;
  }

#ifdef MULTIKV_HAS_SIMD
  // Writes the sum of squares of each vector.
  static void add_squares_of_vectors(float* to, const char* from, int64_t count) {
    const auto squares = [from](int64_t i) {
      const EvenOdd x = widen(load(from + i * static_cast<int64_t>(sizeof(Bytes))));
      return sum(product(x.even, x.even), product(x.odd, x.odd));
    };
    sum_vectors(to, squares, count / kWords);
  }
#endif

  // Writes the sum of squares of each row to `sums`. All rows together have at most kMost elements.
  void add_rows(float* sums, const NormRows& rows, int64_t size) {
    float *from = buffers_[0], *to = buffers_[1];
    int64_t left = add_squares(from, rows, size);  // of each row
    while (left > 1) {
#ifdef MULTIKV_HAS_SIMD
      if (left % kFloats == 0) {
        left /= kFloats;
        sum_vectors(to, [from](int64_t i) { return load_floats(from + i * kFloats); }, rows.num_rows * left);
        std::swap(from, to);
        continue;
      }
#endif
      const int64_t next = (left + 1) / 2;
      if (left % 2 == 0) add_neighbours(to, from, rows.num_rows * left);
      for (int64_t i = 0; i < rows.num_rows && left % 2 != 0; ++i) add_neighbours(to + i * next, from + i * left, left);
      std::swap(from, to);
      left = next;
    }
    std::memcpy(sums, from, rows.num_rows * sizeof(float));
  }

  // Sums pieces of kMost elements. If bit k of the number of pieces so far is set, sums[k] is the sum of 2^k pieces.
  float sum_of_long_row(const char* row, int64_t size) {
    float sums[64];
    int64_t num_pieces = 0;
    for (int64_t begin = 0; begin < size; begin += kMost, ++num_pieces) {
      const int64_t count = size - begin < kMost ? size - begin : kMost;
      float sum;
      add_rows(&sum, {row + begin * static_cast<int64_t>(sizeof(T)), 1, 0}, count);
      int level = 0;
      for (; num_pieces >> level & 1; ++level) sum = sums[level] + sum;
      sums[level] = sum;
    }
    int level = 0;
    while ((num_pieces >> level & 1) == 0) ++level;
    float sum = sums[level];
    while (num_pieces >> ++level != 0) {
      if (num_pieces >> level & 1) sum = sums[level] + sum;
    }
    return sum;
  }

  alignas(64) float buffers_[2][kMost];
};

// Replaces the sums of squares of rows of `size` elements by the factors that their elements are multiplied by.
inline void replace_by_reciprocal_roots(const RmsNorm& norm, float* sums, int64_t num_rows, int64_t size) {
  const auto divisor = static_cast<float>(size);
  int64_t i = 0;
#ifdef MULTIKV_HAS_SIMD
  for (; i + kFloats <= num_rows; i += kFloats) {
    const Floats root = square_root(sum(quotient(load_floats(sums + i), all(divisor)), all(norm.eps)));
    store(sums + i, as_ints(quotient(all(1.0f), root)));
  }
#endif
  for (; i < num_rows; ++i) sums[i] = 1.0f / square_root(sums[i] / divisor + norm.eps);
}

// Weights, each with the bias added, for rows of elements of type T. A chunk of weights is loaded at a time, and kept
// until another chunk is loaded.
template <FloatElement T>
class NormWeights {
  static constexpr bool kHasWords = FloatOf16Bits<T>;

 public:
  static constexpr int64_t kMaxElements = RopeTable::kMaxPairs * (kHasWords ? 2 : 1);
  using Values = RopeTable::Values;  // kHasWords: [0] for even elements and [1] for odd ones; else [0] for all

  // Weights that are not given are ones.
  NormWeights(const NormWeight& weight, float bias) : weight_(weight), bias_(bias) {
    if (are_given()) return;
    for (auto& half : values_) {
      for (float& value : half) value = 1.0f;
    }
  }

  bool are_given() const { return weight_.is_given(); }
  const Values& values() const { return values_; }
  // Whether the magnitudes of the weights are from 2^-16 to 2^16.
  bool are_tame() const { return are_tame_; }

  // Loads the weights begin .. begin + count - 1.
  void load(int64_t begin, int64_t count) {
    if (begin == begin_ || !are_given()) return;
    begin_ = begin;
    with_float(weight_.dtype, [&]<FloatElement Weight>() {
      fill<Weight>(values_, weight_.data + begin * static_cast<int64_t>(sizeof(Weight)), count,
                   kHasWords ? RopeOrder::kAlternating : RopeOrder::kInOrder);
    });
    int32_t num_wild = 0;
    for (auto& half : values_) {
      for (int64_t i = 0; i < (kHasWords ? (count + 1) / 2 : count); ++i) {
        const float weight = half[i] + bias_, magnitude = weight < 0 ? -weight : weight;
        num_wild += (magnitude >= 0x1p-16f) & (magnitude <= 0x1p16f) ? 0 : 1;
        half[i] = weight == weight ? weight : __builtin_nanf("");  // AnyRounding needs NaNs whose low bits are zeros
      }
      if (!kHasWords) break;
    }
    are_tame_ = num_wild == 0;
  }

 private:
  const NormWeight weight_;
  const float bias_;
  int64_t begin_ = -1;
  bool are_tame_ = true;
  alignas(64) Values values_;
};

// Multiplies the elements of a row by `factor` and, if kIsWeighted, by weights. `to` may be `from`.
template <FloatElement T, bool kIsWeighted>
[[gnu::flatten]] void normalise(char* to, const char* from, int64_t count, float factor,
                                const RopeTable::Values& weights) {
  const auto normed = [&](float x, int half, int64_t i) {
    return kIsWeighted ? x * factor * weights[half][i] : x * factor;
  };
  if constexpr (FloatOf16Bits<T>) {
#pragma GCC ivdep
    for (int64_t i = 0; i < count / 2; ++i) {
      const auto word = load_as<uint32_t>(from, i);
      store_as(to, i, Rope<T, T>::word_of(normed(low<T>(word), 0, i), normed(high<T>(word), 1, i)));
    }
    if (count % 2 != 0) store_as(to, count - 1, narrow<T>(normed(widen(load_as<T>(from, count - 1)), 0, count / 2)));
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) store_as(to, i, normed(load_as<T>(from, i), 0, i));
  }
}

#ifdef MULTIKV_HAS_SIMD
// Returns vectors of a row, multiplied by `factor` and by weights, and rounded.
template <Rounding Round>
struct NormedVectors {
  const char* row;
  const RopeTable::Values& weights;
  Floats factor;

  [[gnu::always_inline]] EvenOdd operator()(int64_t i) const {
    const EvenOdd x = widen(load(row + 2 * i));
    return {Round::rounded(product(product(x.even, factor), load_floats(weights[0] + i / 2))),
            Round::rounded(product(product(x.odd, factor), load_floats(weights[1] + i / 2)))};
  }
};

inline void normalise_vectors(char* to, const char* from, int64_t count, float factor, const RopeTable::Values& weights,
                              Stores stores) {
  const NormedVectors<AnyRounding> normed = {from, weights, all(factor)};
  if (stores == Stores::kStreaming) {
    for (int64_t i = 0; i < count; i += kWords) stream(to + 2 * i, narrow(normed(i)));
  } else {
    for (int64_t i = 0; i < count; i += kWords) store(to + 2 * i, narrow(normed(i)));
  }
}
#endif

// Whether normalise() takes kStreaming for rows of `size` elements. All rows must be whole cache lines.
template <FloatElement T>
bool normalise_streams([[maybe_unused]] int64_t size) {
#ifdef MULTIKV_HAS_SIMD
  return std::same_as<T, BFloat16> && size % kWords == 0;
#else
  return false;
#endif
}

template <FloatElement T>
void normalise(char* to, const char* from, int64_t count, float factor, const NormWeights<T>& weights,
               [[maybe_unused]] Stores stores) {
#ifdef MULTIKV_HAS_SIMD
  if constexpr (std::same_as<T, BFloat16>) {
    if (count % kWords == 0) return normalise_vectors(to, from, count, factor, weights.values(), stores);
  }
#endif
  if (weights.are_given()) normalise<T, true>(to, from, count, factor, weights.values());
  else normalise<T, false>(to, from, count, factor, weights.values());
}

}  // namespace
}  // namespace multikv::cpu
