// Moves keys from one position to another: undoes the rotary embedding of the old position, and applies that of the new
// one. The loops are vectorised by the compiler, as in rotate.h.
#pragma once

#include "core/quotient.h"
#include "cpu/isa/codec/rotate.h"

namespace multikv::cpu {
namespace {

constexpr auto kFma = [](float a, float b, float c) { return __builtin_fmaf(a, b, c); };

// The cosines and sines of at most RopeTable::kMaxPairs pairs, at a token's two positions.
struct RepositionTable {
  RopeTable from, to;
  alignas(64) RopeTable::Values square;  // cos^2 + sin^2 at the old position
  // Set if all squares are next to 1, as those of a table without a factor are: see NearOneQuotient.
  bool is_near_one;
  alignas(64) RopeTable::Values high;
  alignas(64) RopeTable::Values low;

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
    bool are_near_one = kHasFma;
    for (int k = 0; k < (order == RopeOrder::kInOrder ? 1 : 2); ++k) {
      // With an odd count, the last element of the second row is not one of the pairs.
      const int64_t pairs = k == 0 ? length : count - length;
      for (int64_t i = 0; i < pairs; ++i) {
        square[k][i] = from.cos[k][i] * from.cos[k][i] + from.sin[k][i] * from.sin[k][i];
        are_near_one &= NearOneQuotient::takes(square[k][i]);
      }
      // A table that has no such quotients fills these rows too, so that the compiler can vectorise the loop.
      for (int64_t i = 0; kHasFma && i < pairs; ++i) {
        const NearOneQuotient quotient(square[k][i], kFma);
        high[k][i] = quotient.high();
        low[k][i] = quotient.low();
      }
    }
    is_near_one = are_near_one;
  }

 private:
  // Without the instruction, a fused multiply-add is slower than a division.
#if defined(__FMA__)
  static constexpr bool kHasFma = true;
#else
  static constexpr bool kHasFma = false;
#endif
};

struct RotatedPair {
  float x, y;
};

// Moves single pairs. kNearOne: whether it divides as NearOneQuotient does.
template <bool kNearOne>
class PairMover {
 public:
  explicit PairMover(const RepositionTable& table) : table_(table) {}

  // `k` and `i` are the indices of the pair in the table.
  [[gnu::always_inline]] RotatedPair operator()(float x, float y, int k, int64_t i) {
    const float cos = table_.from.cos[k][i], sin = table_.from.sin[k][i];
    const float plain_x = divide(x * cos + y * sin, k, i), plain_y = divide(y * cos - x * sin, k, i);
    const float new_cos = table_.to.cos[k][i], new_sin = table_.to.sin[k][i];
    return {plain_x * new_cos - plain_y * new_sin, plain_y * new_cos + plain_x * new_sin};
  }

  // Whether all quotients were correctly rounded.
  bool is_right() const { return !kNearOne || smallest_ >= kTinyOrder; }

 private:
  [[gnu::always_inline]] float divide(float x, int k, int64_t i) {
    if constexpr (!kNearOne) return x / table_.square[k][i];
    const uint32_t order = nonzero_order(x);
    smallest_ = order < smallest_ ? order : smallest_;
    return kFma(x, table_.high[k][i], x * table_.low[k][i]);
  }

  const RepositionTable& table_;
  uint32_t smallest_ = ~uint32_t{0};
};

// The loops for elements of type T.
template <FloatElement T>
struct Reposition {
  static constexpr bool kHasWords = FloatOf16Bits<T>;

  static constexpr RopeOrder order(bool is_neox) {
    return kHasWords && is_neox ? RopeOrder::kAlternating : RopeOrder::kInOrder;
  }

  // Moves the pairs (x[i], y[i]). The order of the table is order(true).
  static void move_halves(char* __restrict x, char* __restrict y, int64_t num_pairs, const RepositionTable& table) {
    alignas(64) T saved[2][RopeTable::kMaxPairs];
    if (table.is_near_one) {
      std::memcpy(saved[0], x, num_pairs * sizeof(T));
      std::memcpy(saved[1], y, num_pairs * sizeof(T));
      if (halves<true>(x, y, num_pairs, table)) return;
      std::memcpy(x, saved[0], num_pairs * sizeof(T));
      std::memcpy(y, saved[1], num_pairs * sizeof(T));
    }
    halves<false>(x, y, num_pairs, table);
  }

  // Moves the pairs (row[2i], row[2i + 1]). The order of the table is kInOrder.
  static void move_neighbours(char* __restrict row, int64_t num_pairs, const RepositionTable& table) {
    alignas(64) T saved[2 * RopeTable::kMaxPairs];
    if (table.is_near_one) {
      std::memcpy(saved, row, 2 * num_pairs * sizeof(T));
      if (neighbours<true>(row, num_pairs, table)) return;
      std::memcpy(row, saved, 2 * num_pairs * sizeof(T));
    }
    neighbours<false>(row, num_pairs, table);
  }

 private:
  static uint32_t word_of(float low, float high) {
    return static_cast<uint32_t>(narrow<T>(low).bits) | static_cast<uint32_t>(narrow<T>(high).bits) << 16;
  }

  // Returns whether all results are right. If not, the caller restores the elements.
  template <bool kNearOne>
  static bool halves(char* __restrict x, char* __restrict y, int64_t num_pairs, const RepositionTable& table) {
    PairMover<kNearOne> move(table);
    const auto move_one = [&] [[gnu::always_inline]] (int64_t i, int k, int64_t at) {
      const RotatedPair pair = move(widen(load_as<T>(x, i)), widen(load_as<T>(y, i)), k, at);
      store_as(x, i, narrow<T>(pair.x));
      store_as(y, i, narrow<T>(pair.y));
    };
    if constexpr (kHasWords) {
      for (int64_t i = 0; i < num_pairs / 2; ++i) {
        const auto xs = load_as<uint32_t>(x, i), ys = load_as<uint32_t>(y, i);
        const RotatedPair even = move(low<T>(xs), low<T>(ys), 0, i), odd = move(high<T>(xs), high<T>(ys), 1, i);
        store_as(x, i, word_of(even.x, odd.x));
        store_as(y, i, word_of(even.y, odd.y));
      }
      if (num_pairs % 2 != 0) move_one(num_pairs - 1, 0, num_pairs / 2);
    } else {
      for (int64_t i = 0; i < num_pairs; ++i) move_one(i, 0, i);
    }
    return move.is_right();
  }

  template <bool kNearOne>
  static bool neighbours(char* __restrict row, int64_t num_pairs, const RepositionTable& table) {
    PairMover<kNearOne> move(table);
    for (int64_t i = 0; i < num_pairs; ++i) {
      if constexpr (kHasWords) {
        const auto word = load_as<uint32_t>(row, i);
        const RotatedPair pair = move(low<T>(word), high<T>(word), 0, i);
        store_as(row, i, word_of(pair.x, pair.y));
      } else {
        const RotatedPair pair = move(load_as<T>(row, 2 * i), load_as<T>(row, 2 * i + 1), 0, i);
        store_as(row, 2 * i, pair.x);
        store_as(row, 2 * i + 1, pair.y);
      }
    }
    return move.is_right();
  }
};

}  // namespace
}  // namespace multikv::cpu
