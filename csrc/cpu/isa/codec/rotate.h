// Rotary position embedding in place, with the arithmetic of eager PyTorch: what has a dtype is rounded to it, and
// nothing is fused. Loops that the compiler turns into vector code; elements of 16 bits are taken two at a time, as a
// word, so that each lane holds a pair from load to store.
#pragma once

#include <type_traits>

#include "cpu/isa/codec/convert.h"

namespace multikv::cpu {
namespace {

// narrow and widen again. BFloat16: for a result of operations on BFloat16s, whose NaN has zeros where it is cut.
template <class Element>
inline float rounded(float x) {
  return widen(narrow<Element>(x));
}
template <>
inline float rounded<BFloat16>(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return std::bit_cast<float>((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u);
}

// The two elements of a word.
template <class Element>
inline float low(uint32_t word) {
  return widen(Element{static_cast<uint16_t>(word)});
}
template <class Element>
inline float high(uint32_t word) {
  return widen(Element{static_cast<uint16_t>(word >> 16)});
}

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

// Of the pairs that are taken at once. Where a word holds elements of two pairs, [0] is for the low ones, [1] for the
// high.
struct RopeTable {
  static constexpr int64_t kMaxPairs = 128;
  alignas(64) float cos[2][kMaxPairs];
  alignas(64) float sin[2][kMaxPairs];
};

template <class Element, class Table>
struct Rope {
  static constexpr bool kOneDtype = std::is_same_v<Element, Table>;
  static constexpr bool kHasWords = sizeof(Element) == 2;

  static float product(float a, float b) { return kOneDtype ? rounded<Element>(a * b) : a * b; }
  static float first(float x, float y, float cos, float sin) { return product(x, cos) - product(y, sin); }
  static float second(float x, float y, float cos, float sin) { return product(y, cos) + product(x, sin); }

  static uint32_t word_of(float low, float high) {
    if constexpr (kOneDtype && std::is_same_v<Element, BFloat16>) {
      return std::bit_cast<uint32_t>(rounded<BFloat16>(low)) >> 16 | std::bit_cast<uint32_t>(rounded<BFloat16>(high));
    } else {
      return static_cast<uint32_t>(narrow<Element>(low).bits) | static_cast<uint32_t>(narrow<Element>(high).bits) << 16;
    }
  }

  static void fill(float (&to)[2][RopeTable::kMaxPairs], const char* from, int64_t pairs, bool split) {
    if (split) {
      for (int64_t i = 0; i < pairs / 2; ++i) {
        to[0][i] = widen(load_as<Table>(from, 2 * i));
        to[1][i] = widen(load_as<Table>(from, 2 * i + 1));
      }
      if (pairs % 2 != 0) to[0][pairs / 2] = widen(load_as<Table>(from, pairs - 1));
    } else {
      for (int64_t i = 0; i < pairs; ++i) to[0][i] = widen(load_as<Table>(from, i));
    }
  }

  static void rotate_pair(char* x, char* y, int64_t i, float cos, float sin) {
    const float x_i = widen(load_as<Element>(x, i)), y_i = widen(load_as<Element>(y, i));
    store_as(x, i, narrow<Element>(first(x_i, y_i, cos, sin)));
    store_as(y, i, narrow<Element>(second(x_i, y_i, cos, sin)));
  }

  // The pairs (x[i], y[i]).
  static void rotate_halves(char* __restrict x, char* __restrict y, int64_t pairs, const RopeTable& table) {
    if constexpr (kHasWords) {
      for (int64_t i = 0; i < pairs / 2; ++i) {
        const auto xs = load_as<uint32_t>(x, i), ys = load_as<uint32_t>(y, i);
        const float x0 = low<Element>(xs), y0 = low<Element>(ys), cos0 = table.cos[0][i], sin0 = table.sin[0][i];
        const float x1 = high<Element>(xs), y1 = high<Element>(ys), cos1 = table.cos[1][i], sin1 = table.sin[1][i];
        store_as(x, i, word_of(first(x0, y0, cos0, sin0), first(x1, y1, cos1, sin1)));
        store_as(y, i, word_of(second(x0, y0, cos0, sin0), second(x1, y1, cos1, sin1)));
      }
      if (pairs % 2 != 0) rotate_pair(x, y, pairs - 1, table.cos[0][pairs / 2], table.sin[0][pairs / 2]);
    } else {
      for (int64_t i = 0; i < pairs; ++i) rotate_pair(x, y, i, table.cos[0][i], table.sin[0][i]);
    }
  }

  // The pairs (row[2i], row[2i + 1]).
  static void rotate_neighbours(char* __restrict row, int64_t pairs, const RopeTable& table) {
    for (int64_t i = 0; i < pairs; ++i) {
      const float cos = table.cos[0][i], sin = table.sin[0][i];
      if constexpr (kHasWords) {
        const auto word = load_as<uint32_t>(row, i);
        const float x = low<Element>(word), y = high<Element>(word);
        store_as(row, i, word_of(first(x, y, cos, sin), second(x, y, cos, sin)));
      } else {
        const float x = load_as<Element>(row, 2 * i), y = load_as<Element>(row, 2 * i + 1);
        store_as(row, 2 * i, first(x, y, cos, sin));
        store_as(row, 2 * i + 1, second(x, y, cos, sin));
      }
    }
  }

  // `rows` rows of 2 * num_pairs elements, `stride` bytes apart. table_row: num_pairs cosines, then as many sines.
  static void rotate_rows(char* rows, int64_t num_rows, int64_t stride, const char* table_row, int64_t num_pairs,
                          bool is_neox) {
    RopeTable table;
    constexpr auto kBytes = static_cast<int64_t>(sizeof(Element));
    for (int64_t begin = 0; begin < num_pairs; begin += RopeTable::kMaxPairs) {
      const int64_t pairs = num_pairs - begin < RopeTable::kMaxPairs ? num_pairs - begin : RopeTable::kMaxPairs;
      fill(table.cos, table_row + begin * static_cast<int64_t>(sizeof(Table)), pairs, kHasWords && is_neox);
      fill(table.sin, table_row + (num_pairs + begin) * static_cast<int64_t>(sizeof(Table)), pairs,
           kHasWords && is_neox);
      for (int64_t i = 0; i < num_rows; ++i) {
        char* row = rows + i * stride;
        if (is_neox) rotate_halves(row + begin * kBytes, row + (num_pairs + begin) * kBytes, pairs, table);
        else rotate_neighbours(row + 2 * begin * kBytes, pairs, table);
      }
    }
  }
};

using RotateRows = void (*)(char*, int64_t, int64_t, const char*, int64_t, bool);

inline RotateRows rotate_rows_for(Float dtype, Float table_dtype) {
  const bool one_dtype = dtype == table_dtype;
  switch (dtype) {
    case Float::kFloat32: return Rope<float, float>::rotate_rows;
    case Float::kFloat16: return one_dtype ? Rope<Half, Half>::rotate_rows : Rope<Half, float>::rotate_rows;
    case Float::kBFloat16: break;
  }
  return one_dtype ? Rope<BFloat16, BFloat16>::rotate_rows : Rope<BFloat16, float>::rotate_rows;
}

}  // namespace
}  // namespace multikv::cpu
