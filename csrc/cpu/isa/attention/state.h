// Partial results of attention, and how they are joined.
#pragma once

#include "cpu/isa/attention/weights.h"
#include "cpu/isa/codec/elements.h"

namespace multikv::cpu {
namespace {

// The result of a query row over some of its keys (AttentionSizes::partial_size): the sums of the weighted values, the
// largest score, and the sum of the weights.
struct Partial {
  float* data;
  int64_t value_size;

  float* totals() const { return data; }
  float& largest() const { return data[value_size]; }
  float& sum() const { return data[value_size + 1]; }
  WeightSum weight_sum() const { return {largest(), sum()}; }
  void set_empty() const {
    for (int64_t d = 0; d < value_size; ++d) data[d] = 0;
    largest() = -kInfinity;
    sum() = 0;
  }
};

// Joins the result `next` to the result `to`. If `next` has no visible key, `to` does not change.
inline void join(Partial to, Partial next) {
  if (next.sum() == 0) return;
  const float most = next.largest() > to.largest() ? next.largest() : to.largest();
  const float a = exp_of_nonpositive(to.largest() - most), b = exp_of_nonpositive(next.largest() - most);
  for (int64_t d = 0; d < to.value_size; d += kLanes) {
    const auto both = [&](Native x, Native y) { return x * a + y * b; };
    store_lanes(to.totals() + d, map_lanes(both, load_lanes(to.totals() + d), load_lanes(next.totals() + d)));
  }
  to.largest() = most;
  to.sum() = to.sum() * a + next.sum() * b;
}

inline float sink_of(const AttentionOptions& options, int64_t head) {
  return with_float(options.sinks_dtype,
                    [&]<FloatElement T>() { return widen(static_cast<const T*>(options.sinks)[head]); });
}

template <FloatElement T>
void write_out(T* out, const float* totals, int64_t size, float factor) {
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) {
    for (int64_t i = d; i < d + kLanes; ++i) out[i] = narrow<T>(totals[i] * factor);
  }
  for (; d < size; ++d) out[d] = narrow<T>(totals[d] * factor);
}

// Joins the sink to the result of a query row, and writes out and lse.
inline void finish_row(const PagedAttentionParams& p, Partial result, int64_t row, int64_t query_head) {
  float most = result.largest(), sum = result.sum(), scale = 1;
  const bool sees_nothing = sum == 0;
  if (p.options.sinks != nullptr) {
    const float sink = sink_of(p.options, query_head);
    const float joined = sink > most ? sink : most;
    scale = sees_nothing ? 0 : exp_of_nonpositive(most - joined);
    sum = sees_nothing ? 1 : sum * scale + exp_of_nonpositive(sink - joined);
    most = sees_nothing ? sink : joined;
  }
  const CacheView& values = p.value_view();
  const float v_scale = values.codec.is_float() ? 1 : *values.scale_of(query_head / p.heads_per_kv_head());
  const float factor = sees_nothing ? 0 : scale * v_scale / sum;
  char* out = p.out.head(row, query_head);
  with_float(p.dtype,
             [&]<FloatElement T>() { write_out(reinterpret_cast<T*>(out), result.totals(), p.value_size, factor); });
  if (!p.lse.is_given()) return;
  const bool is_empty = sees_nothing && p.options.sinks == nullptr;
  *p.lse.at(query_head, row) = is_empty ? -kInfinity : most + log_of(sum);
}

}  // namespace
}  // namespace multikv::cpu
