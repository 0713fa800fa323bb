// Moves keys from one position to another: undoes the rotary embedding of the old position, and applies that of the new
// one. The loops are vectorised by the compiler, as in rotate.h.
#pragma once

#include "cpu/isa/codec/rotate.h"

namespace multikv::cpu {
namespace {

// The cosines and sines of at most RopeTable::kMaxPairs pairs, at a token's two positions.
struct RepositionTable {
  RopeTable from, to;
  alignas(64) RopeTable::Values square;  // cos^2 + sin^2 at the old position

  // Reads the pairs begin .. begin + count - 1 of two rows, each of num_pairs cosines and num_pairs sines.
  template <FloatElement Table>
  void read(const char* from_row, const char* to_row, int64_t begin, int64_t count, int64_t num_pairs,
            RopeOrder order) {
    constexpr int64_t kBytes = sizeof(Table);
    fill<Table>(from.cos, from_row + begin * kBytes, count, order);
    fill<Table>(from.sin, from_row + (num_pairs + begin) * kBytes, count, order);
    fill<Table>(to.cos, to_row + begin * kBytes, count, order);
    fill<Table>(to.sin, to_row + (num_pairs + begin) * kBytes, count, order);
    const int64_t length = order == RopeOrder::kInOrder ? count : (count + 1) / 2;
    for (int k = 0; k < (order == RopeOrder::kInOrder ? 1 : 2); ++k) {
      for (int64_t i = 0; i < length; ++i) {
        square[k][i] = from.cos[k][i] * from.cos[k][i] + from.sin[k][i] * from.sin[k][i];
      }
    }
  }
};

struct RotatedPair {
  float x, y;
};

// Moves one pair. `k` and `i` are its indices in the table.
[[gnu::always_inline]] inline RotatedPair reposition(float x, float y, const RepositionTable& table, int k, int64_t i) {
  const float cos = table.from.cos[k][i], sin = table.from.sin[k][i], square = table.square[k][i];
  const float plain_x = (x * cos + y * sin) / square, plain_y = (y * cos - x * sin) / square;
  const float new_cos = table.to.cos[k][i], new_sin = table.to.sin[k][i];
  return {plain_x * new_cos - plain_y * new_sin, plain_y * new_cos + plain_x * new_sin};
}

// The loops for elements of type T.
template <FloatElement T>
struct Reposition {
  static constexpr bool kHasWords = FloatOf16Bits<T>;

  static constexpr RopeOrder order(bool is_neox) {
    return kHasWords && is_neox ? RopeOrder::kAlternating : RopeOrder::kInOrder;
  }

  static uint32_t word_of(float low, float high) {
    return static_cast<uint32_t>(narrow<T>(low).bits) | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
  }

  static void move_pair(char* x, char* y, int64_t i, const RepositionTable& table, int k, int64_t at) {
    const RotatedPair pair = reposition(widen(load_as<T>(x, i)), widen(load_as<T>(y, i)), table, k, at);
    store_as(x, i, narrow<T>(pair.x));
    store_as(y, i, narrow<T>(pair.y));
  }

  // Moves the pairs (x[i], y[i]). The order of the table is order(true).
  static void move_halves(char* __restrict x, char* __restrict y, int64_t num_pairs, const RepositionTable& table) {
    if constexpr (kHasWords) {
      for (int64_t i = 0; i < num_pairs / 2; ++i) {
        const auto xs = load_as<uint32_t>(x, i), ys = load_as<uint32_t>(y, i);
        const RotatedPair even = reposition(low<T>(xs), low<T>(ys), table, 0, i);
        const RotatedPair odd = reposition(high<T>(xs), high<T>(ys), table, 1, i);
        store_as(x, i, word_of(even.x, odd.x));
        store_as(y, i, word_of(even.y, odd.y));
      }
      if (num_pairs % 2 != 0) move_pair(x, y, num_pairs - 1, table, 0, num_pairs / 2);
    } else {
      for (int64_t i = 0; i < num_pairs; ++i) move_pair(x, y, i, table, 0, i);
    }
  }

  // Moves the pairs (row[2i], row[2i + 1]). The order of the table is kInOrder.
  static void move_neighbours(char* __restrict row, int64_t num_pairs, const RepositionTable& table) {
    for (int64_t i = 0; i < num_pairs; ++i) {
      if constexpr (kHasWords) {
        const auto word = load_as<uint32_t>(row, i);
        const RotatedPair pair = reposition(low<T>(word), high<T>(word), table, 0, i);
        store_as(row, i, word_of(pair.x, pair.y));
      } else {
        const RotatedPair pair = reposition(load_as<T>(row, 2 * i), load_as<T>(row, 2 * i + 1), table, 0, i);
        store_as(row, 2 * i, pair.x);
        store_as(row, 2 * i + 1, pair.y);
      }
    }
  }
};

}  // namespace
}  // namespace multikv::cpu
