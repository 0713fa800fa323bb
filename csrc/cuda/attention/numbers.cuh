// The arithmetic of attention that all kernels share. Every operation is explicit (__fmul_rn, __fmaf_rn and so on), so
// that the compiler contracts nothing: a function returns the same bits in every kernel that calls it.
//
// Scores are held as base-2 logarithms of their exponentials: a score s of the definition is s * log2(e) here.
#pragma once

#include "cuda/attention/problem.h"
#include "cuda/core/pack.cuh"

namespace multikv::gpu {

inline constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;
inline constexpr float kNoScore = -__builtin_inff();

// The result of attention over a set of keys is held as m, l and o. m is a number near the largest score, l is the sum
// of the weights 2^(score - m), and o is the sum of weight * value. So out = o / l, and the base-2 lse is m + log2(l).
// l == 0 means that no key has a weight. JoinWeights has the m and l of the union of two sets, and the factors with
// which their o are added.
struct JoinWeights {
  float m, l;
  float first, second;  // the factors of the first and the second o
  // is_first: no key of the second set has a weight, and the result is that of the first set. is_second: the reverse.
  bool is_first, is_second;
};

__device__ inline JoinWeights join(float m1, float l1, float m2, float l2) {
  if (l2 == 0.0f) return {m1, l1, 1.0f, 0.0f, true, false};
  if (l1 == 0.0f) return {m2, l2, 0.0f, 1.0f, false, true};
  const float m = fmaxf(m1, m2);
  const float first = exp2_approximate(__fsub_rn(m1, m)), second = exp2_approximate(__fsub_rn(m2, m));
  return {m, __fmaf_rn(l1, first, __fmul_rn(l2, second)), first, second, false, false};
}

__device__ inline float joined(const JoinWeights& weights, float first, float second) {
  if (weights.is_first) return first;
  if (weights.is_second) return second;
  return __fmaf_rn(first, weights.first, __fmul_rn(second, weights.second));
}

// What turns o and l of all keys into out and lse.
struct Finish {
  float factor;  // out = o * factor
  float lse;
  bool is_empty;  // out = 0
};

// `sink` is the sink's score as the caller gave it, or kNoScore.
__device__ inline Finish finish(float m, float l, float sink, float value_scale) {
  if (l == 0.0f) return {0.0f, sink, true};
  float factor = value_scale;
  if (sink != kNoScore) {
    const float score = __fmul_rn(sink, kLog2E), largest = fmaxf(m, score);
    const float weight = exp2_approximate(__fsub_rn(m, largest));
    l = __fmaf_rn(l, weight, exp2_approximate(__fsub_rn(score, largest)));
    factor = __fmul_rn(factor, weight);
    m = largest;
  }
  return {__fdiv_rn(factor, l), __fmul_rn(__fadd_rn(m, log2f(l)), kLn2), false};
}

// How a product of a query and a key becomes a score. The matrix kernels hold a number x for each key, and the score is
// x * factor():
//
//              x                                   factor()
//   is_plain   the product                         the coefficient
//   otherwise  the score, computed by operator()   1
struct Scoring {
  float softcap;  // times log2(e); 0: none
  bool has_slopes;
  bool is_plain;  // x is the product

  __device__ static Scoring of(const AttentionOptions& options, float key_scale) {
    const bool has_slopes = options.alibi_slopes != nullptr;
    const bool is_plain = options.softcap <= 0.0f && !has_slopes && __fmul_rn(options.scale, key_scale) > 0.0f;
    return {__fmul_rn(options.softcap, kLog2E), has_slopes, is_plain};
  }

  // What products are multiplied by, before softcap and ALiBi.
  __device__ static float coefficient(const AttentionOptions& options, float key_scale) {
    const float scale = __fmul_rn(options.scale, key_scale);
    return options.softcap > 0.0f ? __fdiv_rn(__fmul_rn(scale, 2.0f * kLog2E), options.softcap)
                                  : __fmul_rn(scale, kLog2E);
  }
  __device__ float factor(float coefficient) const { return is_plain ? coefficient : 1.0f; }

  // The whole score. `slope` is the row's ALiBi slope times log2(e), `distance` is key position - query position.
  __device__ float operator()(float product, float coefficient, float slope, int distance) const {
    float score = __fmul_rn(product, coefficient);
    // tanh(x) = 1 - 2 / (exp(2 x) + 1), and `score` is 2 x * log2(e).
    if (softcap > 0.0f) {
      const float tanh = __fsub_rn(1.0f, __fdividef(2.0f, __fadd_rn(exp2_approximate(score), 1.0f)));
      score = __fmul_rn(softcap, tanh);
    }
    if (has_slopes) score = __fmaf_rn(slope, static_cast<float>(distance), score);
    return score;
  }
};

__device__ inline float scale_of(const CacheSource& cache, int64_t head) {
  return cache.scale == nullptr ? 1.0f : cache.scale[head * cache.scale_stride_head];
}

__device__ inline float slope_of(const AttentionOptions& options, int64_t head) {
  return options.alibi_slopes == nullptr ? 0.0f : __fmul_rn(options.alibi_slopes[head], kLog2E);
}

__device__ inline float load_float16(uint16_t bits, Float dtype) {
  return dtype == Float::kFloat16 ? half_to_float(bits) : float_from_bfloat16(bits);
}

// The score of a head's sink, or kNoScore.
__device__ inline float sink_of(const AttentionOptions& options, int64_t head) {
  if (options.sinks == nullptr) return kNoScore;
  if (options.sinks_dtype == Float::kFloat32) return static_cast<const float*>(options.sinks)[head];
  return load_float16(static_cast<const uint16_t*>(options.sinks)[head], options.sinks_dtype);
}

}  // namespace multikv::gpu
