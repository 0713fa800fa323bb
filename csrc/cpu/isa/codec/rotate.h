// Applies rotary position embedding, in place or from one row to another. The loops are vectorised by the compiler. The
// pragma ivdep tells it that an iteration reads nothing that an earlier one has written, and `flatten` makes it inline
// the conversions of elements. Elements of 16 bits are loaded and stored two at a time, as words of 32 bits, so that a
// vector of words has as many elements as a vector of float32.
#pragma once

#include "cpu/isa/codec/rope_table.h"
#include "cpu/isa/codec/rotate_vectors.h"

namespace multikv::cpu {
namespace {

// Word i of an array holds the elements 2i and 2i + 1. These functions return them as float32.
template <FloatOf16Bits T>
inline float low(uint32_t word) {
  return widen(T{static_cast<uint16_t>(word)});
}
template <FloatOf16Bits T>
inline float high(uint32_t word) {
  return widen(T{static_cast<uint16_t>(word >> 16)});
}

// Rotates elements of type T by cosines and sines of type Table: (x, y) becomes (x cos - y sin, y cos + x sin).
template <FloatElement T, FloatElement Table>
struct Rope {
  static constexpr bool kIsOneDtype = std::same_as<T, Table>;
  static constexpr bool kHasWords = FloatOf16Bits<T>;

  static float product(float a, float b) { return kIsOneDtype ? rounded<T>(a * b) : a * b; }
  static float first(float x, float y, float cos, float sin) { return product(x, cos) - product(y, sin); }
  static float second(float x, float y, float cos, float sin) { return product(y, cos) + product(x, sin); }

  static uint32_t word_of(float low, float high) {
    if constexpr (kIsOneDtype && std::same_as<T, BFloat16>) {
      return std::bit_cast<uint32_t>(rounded<BFloat16>(low)) >> 16 | std::bit_cast<uint32_t>(rounded<BFloat16>(high));
    } else {
      return static_cast<uint32_t>(narrow<T>(low).bits) | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
    }
  }

  // Arrays of the first and of the second elements of pairs: where they are read, and where they are written.
  struct Halves {
    char *to_x, *to_y;
    const char *x, *y;
  };

  [[gnu::flatten]] static void rotate_pair(const Halves& at, int64_t i, float cos, float sin) {
    const float x = widen(load_as<T>(at.x, i)), y = widen(load_as<T>(at.y, i));
    store_as(at.to_x, i, narrow<T>(first(x, y, cos, sin)));
    store_as(at.to_y, i, narrow<T>(second(x, y, cos, sin)));
  }

  // Rotates the pairs (x[i], y[i]). The order of the table is kAlternating if kHasWords, otherwise kInOrder.
  [[gnu::flatten]] static void rotate_halves(const Halves& at, int64_t num_pairs, const RopeTable& table) {
    char *to_x = at.to_x, *to_y = at.to_y;
    const char *x = at.x, *y = at.y;
    if constexpr (kHasWords) {
#pragma GCC ivdep
      for (int64_t i = 0; i < num_pairs / 2; ++i) {
        const auto xs = load_as<uint32_t>(x, i), ys = load_as<uint32_t>(y, i);
        const float x0 = low<T>(xs), y0 = low<T>(ys), cos0 = table.cos[0][i], sin0 = table.sin[0][i];
        const float x1 = high<T>(xs), y1 = high<T>(ys), cos1 = table.cos[1][i], sin1 = table.sin[1][i];
        store_as(to_x, i, word_of(first(x0, y0, cos0, sin0), first(x1, y1, cos1, sin1)));
        store_as(to_y, i, word_of(second(x0, y0, cos0, sin0), second(x1, y1, cos1, sin1)));
      }
      if (num_pairs % 2 == 0) return;
      rotate_pair(at, num_pairs - 1, table.cos[0][num_pairs / 2], table.sin[0][num_pairs / 2]);
    } else {
#pragma GCC ivdep
      for (int64_t i = 0; i < num_pairs; ++i) {
        const float x_i = widen(load_as<T>(x, i)), y_i = widen(load_as<T>(y, i));
        const float cos = table.cos[0][i], sin = table.sin[0][i];
        store_as(to_x, i, narrow<T>(first(x_i, y_i, cos, sin)));
        store_as(to_y, i, narrow<T>(second(x_i, y_i, cos, sin)));
      }
    }
  }

  // Rotates the pairs (row[2i], row[2i + 1]). The order of the table is kInOrder.
  [[gnu::flatten]] static void rotate_neighbours(char* to, const char* row, int64_t num_pairs, const RopeTable& table) {
#pragma GCC ivdep
    for (int64_t i = 0; i < num_pairs; ++i) {
      const float cos = table.cos[0][i], sin = table.sin[0][i];
      if constexpr (kHasWords) {
        const auto word = load_as<uint32_t>(row, i);
        const float x = low<T>(word), y = high<T>(word);
        store_as(to, i, word_of(first(x, y, cos, sin), second(x, y, cos, sin)));
      } else {
        const float x = load_as<T>(row, 2 * i), y = load_as<T>(row, 2 * i + 1);
        store_as(to, 2 * i, first(x, y, cos, sin));
        store_as(to, 2 * i + 1, second(x, y, cos, sin));
      }
    }
  }

  // Rotates the pairs begin .. begin + count - 1 of a row of 2 * num_pairs elements.
  static void rotate_part(char* to, const char* from, int64_t begin, int64_t count, int64_t num_pairs, bool is_neox,
                          const RopeTable& table) {
    constexpr int64_t kBytes = sizeof(T);
    const int64_t second = (num_pairs + begin) * kBytes;
    if (is_neox) rotate_halves({to + begin * kBytes, to + second, from + begin * kBytes, from + second}, count, table);
    else rotate_neighbours(to + 2 * begin * kBytes, from + 2 * begin * kBytes, count, table);
  }

  static constexpr RopeOrder order(bool is_neox) {
    return kHasWords && is_neox ? RopeOrder::kAlternating : RopeOrder::kInOrder;
  }

  // Rotates `num_rows` rows of 2 * num_pairs elements in place, which are `stride_bytes` apart. table_row holds
  // num_pairs cosines, then num_pairs sines.
  static void rotate_rows(char* rows, int64_t num_rows, int64_t stride_bytes, const char* table_row, int64_t num_pairs,
                          bool is_neox) {
    constexpr int64_t kTableBytes = sizeof(Table);
    RopeTable table;
    for (int64_t begin = 0; begin < num_pairs; begin += RopeTable::kMaxPairs) {
      const int64_t pairs = num_pairs - begin < RopeTable::kMaxPairs ? num_pairs - begin : RopeTable::kMaxPairs;
      fill<Table>(table.cos, table_row + begin * kTableBytes, pairs, order(is_neox));
      fill<Table>(table.sin, table_row + (num_pairs + begin) * kTableBytes, pairs, order(is_neox));
#ifdef MULTIKV_HAS_SIMD
      if constexpr (std::same_as<T, BFloat16>) {
        if (takes_pairs(pairs, is_neox)) {
          rotate_vectors<Table>({rows, num_rows, stride_bytes}, table, {0, begin, pairs, num_pairs}, is_neox);
          continue;
        }
      }
#endif
      for (int64_t i = 0; i < num_rows; ++i) {
        char* row = rows + i * stride_bytes;
        rotate_part(row, row, begin, pairs, num_pairs, is_neox, table);
      }
    }
  }
};

using RotateRows = void (*)(char* rows, int64_t num_rows, int64_t stride_bytes, const char* table_row,
                            int64_t num_pairs, bool is_neox);

// table_dtype is `dtype` or float32.
inline RotateRows rotate_rows_for(Float dtype, Float table_dtype) {
  return with_float(dtype, [&]<FloatElement T>() -> RotateRows {
    return table_dtype == dtype ? Rope<T, T>::rotate_rows : Rope<T, float>::rotate_rows;
  });
}

}  // namespace
}  // namespace multikv::cpu
