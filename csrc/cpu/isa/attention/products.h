// The two products of attention, queries with keys and weights with values, for up to four query rows at a time.
//
// A score is accumulated in sixteen lanes over the elements of the key, in ascending order, and then summed over the
// lanes. A weighted sum is accumulated over the keys in ascending order. So the results of a row do not depend on how
// many rows and keys are processed together.
#pragma once

#include "cpu/isa/attention/elements.h"

namespace multikv::cpu {
namespace {

// Keys or values in a cache: rows[i] + offset_bytes is the start of row i.
struct CachedRows {
  const char* const* rows;
  int64_t offset_bytes;
  const char* operator()(int64_t i) const { return rows[i] + offset_bytes; }
};

// Decoded keys or values. Row i of the granule is row i - first of the tile.
struct TileRows {
  const char* tile;
  int64_t first, stride_bytes;
  const char* operator()(int64_t i) const { return tile + (i - first) * stride_bytes; }
};

// A function from the number of a row to its address.
template <class T>
concept RowAddress = requires(const T& rows, int64_t i) {
  { rows(i) } -> std::same_as<const char*>;
};

// An array of rows of floats.
struct FloatRows {
  float* data;
  int64_t stride;
  float* row(int64_t i) const { return data + i * stride; }
  FloatRows from(int64_t i) const { return {row(i), stride}; }
};

// Rows [begin, end) of keys or values.
struct RowSpan {
  int64_t begin, end;
  bool is_empty() const { return begin >= end; }
};

// scores[r][j] = queries[r] . keys[j] for the rows r < kRows and the keys j of the span. `size` is a multiple of
// kLanes. visit(j, count) is called before the keys [j, j + count) are read; j + count may exceed the end of the span.
template <class Reader, int kRows, RowAddress Rows, class Visit>
[[gnu::noinline]] void score_keys(const Rows& keys, RowSpan span, int64_t size, FloatRows queries, FloatRows scores,
                                  const Visit& visit) {
  constexpr int kKeys = 4 / kRows;
  for (int64_t j = span.begin; j < span.end; j += kKeys) {
    visit(j, kKeys);
    const char* at[kKeys];
    unrolled<kKeys>([&](auto k) { at[k] = keys(j + k < span.end ? j + k : j); });
    Lanes sum[4];
    unrolled<4>([&](auto i) { sum[i] = lanes(0); });
    for (int64_t d = 0; d < size; d += kLanes) {
      Lanes key[kKeys];
      unrolled<kKeys>([&] [[gnu::always_inline]] (auto k) { key[k] = Reader::load(at[k] + d * Reader::kBytes); });
      unrolled<kRows>([&] [[gnu::always_inline]] (auto r) {
        const Lanes query = load_lanes(queries.data + r * queries.stride + d);
        unrolled<kKeys>([&] [[gnu::always_inline]] (auto k) {
          sum[k * kRows + r] = add_product(sum[k * kRows + r], query, key[k]);
        });
      });
    }
    const Quad result = sums(sum[0], sum[1], sum[2], sum[3]);
    for (int k = 0; k < kKeys && j + k < span.end; ++k) {
      for (int r = 0; r < kRows; ++r) scores.data[r * scores.stride + j + k] = result[k * kRows + r];
    }
  }
}

// Does what add_values() does, for the elements [d, d + kBlocks * kLanes).
template <class Reader, int kRows, int kBlocks, RowAddress Rows, class Visit>
[[gnu::always_inline]] inline void add_values_at(const Rows& values, RowSpan span, int64_t d, FloatRows weights,
                                                 FloatRows totals, const Visit& visit) {
  Lanes total[kRows * kBlocks];
  const auto each_total = [&] [[gnu::always_inline]] (const auto& visit) {
    unrolled<kRows * kBlocks>([&] [[gnu::always_inline]] (auto i) {
      visit(total[i], totals.data + i / kBlocks * totals.stride + d + i % kBlocks * kLanes);
    });
  };
  each_total([] [[gnu::always_inline]] (Lanes & x, float* at) { x = load_lanes(at); });
  for (int64_t j = span.begin; j < span.end; ++j) {
    visit(j, d * Reader::kBytes, kBlocks * kLanes * Reader::kBytes);
    const char* at = values(j) + d * Reader::kBytes;
    Lanes value[kBlocks];
    unrolled<kBlocks>([&](auto b)
                          [[gnu::always_inline]] { value[b] = Reader::load(at + b * kLanes * Reader::kBytes); });
    unrolled<kRows>([&] [[gnu::always_inline]] (auto r) {
      const Lanes weight = lanes(weights.data[r * weights.stride + j]);
      unrolled<kBlocks>([&] [[gnu::always_inline]] (auto b) {
        total[r * kBlocks + b] = add_product(total[r * kBlocks + b], weight, value[b]);
      });
    });
  }
  each_total([] [[gnu::always_inline]] (const Lanes& x, float* at) { store_lanes(at, x); });
}

// totals[r][d] += weights[r][j] * values[j][d] for the rows r < kRows, the values j of the span in ascending order, and
// all d < size, which is a multiple of kLanes. visit(j, offset_bytes, num_bytes) is called before these bytes of value
// j are read.
template <class Reader, int kRows, RowAddress Rows, class Visit>
[[gnu::noinline]] void add_values(const Rows& values, RowSpan span, int64_t size, FloatRows weights, FloatRows totals,
                                  const Visit& visit) {
  constexpr int kBlocks = (kNatives == 1 ? 8 : 4) / kRows;  // as many sums as hide the latency of an addition
  int64_t d = 0;
  for (; d + kBlocks * kLanes <= size; d += kBlocks * kLanes) {
    add_values_at<Reader, kRows, kBlocks>(values, span, d, weights, totals, visit);
  }
  for (; d < size; d += kLanes) add_values_at<Reader, kRows, 1>(values, span, d, weights, totals, visit);
}

// Calls with<kRows>() for 1 <= rows <= 4.
template <class With>
[[gnu::always_inline]] inline void with_rows(int64_t rows, const With& with) {
  switch (rows) {
    case 1: return with.template operator()<1>();
    case 2: return with.template operator()<2>();
    case 3: return with.template operator()<3>();
  }
  return with.template operator()<4>();
}

}  // namespace
}  // namespace multikv::cpu
