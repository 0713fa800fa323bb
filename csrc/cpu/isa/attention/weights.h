// Turns the products of a query row with the keys of a granule into softmax weights.
#pragma once

#include <limits>

#include "cpu/isa/attention/math.h"
#include "cpu/isa/attention/products.h"

namespace multikv::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// How products become scores, for one query row.
struct Scoring {
  float factor;   // scale * k_scale
  float softcap;  // 0: none
  float slope;    // of ALiBi; 0: none
  bool has_slope;
  int64_t position;  // of the query token, minus the first position of the granule
};

// Turns the products [begin, end) into scores. `begin` and `end` are multiples of kLanes.
inline void scale_products(float* products, int64_t begin, int64_t end, const Scoring& scoring) {
  const Lanes steps = lanes_of([](int i) { return static_cast<float>(i); });
  for (int64_t j = begin; j < end; j += kLanes) {
    Lanes x = map_lanes([&](Native s) { return s * scoring.factor; }, load_lanes(products + j));
    if (scoring.softcap > 0) {
      x = map_lanes([&](Native s) { return tanh_of(s / scoring.softcap) * scoring.softcap; }, x);
    }
    if (scoring.has_slope) {
      const auto distance = static_cast<float>(j - scoring.position);
      x = map_lanes([&](Native s, Native step) { return s + (step + distance) * scoring.slope; }, x, steps);
    }
    store_lanes(products + j, x);
  }
}

// The keys of a granule that a row sees: those of `span`, except those from mask_begin on whose bit is not set. Bit b
// stands for key mask_begin + b. Without a query mask, mask_begin is the end of the granule.
struct VisibleKeys {
  RowSpan span;
  int64_t mask_begin;
  uint64_t mask;

  bool has_mask() const { return mask_begin < span.end; }
  bool is_masked(int64_t key) const { return key >= mask_begin && (mask >> (key - mask_begin) & 1) == 0; }

  // Calls visit(RowSpan) for every run of consecutive visible keys within a span, in ascending order.
  template <class Visit>
  void for_each_run(RowSpan within, const Visit& visit) const {
    const int64_t end = within.end < span.end ? within.end : span.end;
    int64_t begin = within.begin > span.begin ? within.begin : span.begin;
    while (begin < end) {
      int64_t next = begin < mask_begin ? (mask_begin < end ? mask_begin : end) : begin;
      while (next < end && !is_masked(next)) ++next;
      if (begin < next) visit(RowSpan{begin, next});
      begin = next + (next < end);
    }
  }
};

struct WeightSum {
  float largest, sum;
};

// Replaces the products of a row with the keys of a granule by exp(score - largest), and by 0 where a key is invisible.
// Returns the largest score and the sum of the weights; -infinity and 0 if no key is visible.
inline WeightSum weigh(float* products, const VisibleKeys& keys, const Scoring& scoring) {
  if (keys.span.is_empty()) return {-kInfinity, 0};
  const int64_t begin = keys.span.begin / kLanes * kLanes;
  const int64_t end = (keys.span.end + kLanes - 1) / kLanes * kLanes;
  scale_products(products, begin, end, scoring);
  for (int64_t j = begin; j < keys.span.begin; ++j) products[j] = -kInfinity;
  for (int64_t j = keys.span.end; j < end; ++j) products[j] = -kInfinity;
  for (int64_t j = keys.mask_begin > begin ? keys.mask_begin : begin; j < keys.span.end; ++j) {
    if (keys.is_masked(j)) products[j] = -kInfinity;
  }
  Lanes largest = lanes(-kInfinity);
  for (int64_t j = begin; j < end; j += kLanes) {
    largest = map_lanes(larger_or_second, load_lanes(products + j), largest);
  }
  const float most = fold(largest, Larger{});
  const float shift = most == -kInfinity ? 0 : most;
  Lanes sum = lanes(0);
  for (int64_t j = begin; j < end; j += kLanes) {
    const Lanes weights = map_lanes([&](Native s) { return exp_of_nonpositive(s - shift); }, load_lanes(products + j));
    sum = map_lanes(Add{}, sum, weights);
    store_lanes(products + j, weights);
  }
  return {most, fold(sum, Add{})};
}

}  // namespace
}  // namespace multikv::cpu
