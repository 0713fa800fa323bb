// The query rows of a tile in shared memory.
#pragma once

#include "cuda/attention/partials.cuh"
#include "cuda/attention/tile_math.cuh"

namespace multikv::gpu {

// What a kernel needs to know of a row to compute its scores.
struct TileRow {
  Visible visible;
  float coefficient, slope;  // of Scoring
};

// Four neighbouring elements of a query, from element `first` on, as floats; zeros past the end.
__device__ inline float4 query_elements(const AttentionProblem& p, const char* row, int first) {
  uint32_t words[2] = {0, 0};
  if (p.has_query_vectors) {
    if (first < p.key_size) {
      const auto pack = Pack<8>::read(row + first * 2);
      words[0] = pack.words[0];
      words[1] = pack.words[1];
    }
  } else {
    const auto* halves = reinterpret_cast<const uint16_t*>(row);
    for (int i = 0; i < 4 && first + i < p.key_size; ++i) {
      words[i / 2] |= static_cast<uint32_t>(halves[first + i]) << (i % 2 * 16);
    }
  }
  const auto floats = [&words]<Float kDtype>() -> float4 {
    return {element<kDtype>(words, 0), element<kDtype>(words, 1), element<kDtype>(words, 2), element<kDtype>(words, 3)};
  };
  return p.dtype == Float::kFloat16 ? floats.template operator()<Float::kFloat16>()
                                    : floats.template operator()<Float::kBFloat16>();
}

// The power of two that brings a row's largest magnitude, which all lanes know, to the top of float16's range. Where it
// is infinite, NaN or 0, 1.
__device__ inline float power_to_float16(float largest) {
  if (!(largest > 0.0f) || largest == -kNoScore) return 1.0f;
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
  return __uint_as_float(static_cast<uint32_t>(127 + min(14 - exponent, 100)) << 23);
}

// Reads a row of a tile to shared memory, in the order that multiply_keys expects. All lanes of a warp call it with the
// same row. Returns the power of two that the row was multiplied by.
template <class Store, int kHeadSize>
__device__ inline float load_row(const AttentionProblem& p, const Segment& segment, int row, char* queries) {
  constexpr int kPerLane = kHeadSize <= 128 ? 1 : kHeadSize / 128;
  const int lane = threadIdx.x % 32;
  const bool is_row = row < segment.num_rows;
  const RowOwner owner(p, segment, is_row ? row : 0);
  float4 elements[kPerLane];
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int element = 4 * (lane + 32 * i);
    elements[i] = float4{};
    if (is_row && element < kHeadSize) {
      elements[i] = query_elements(p, p.query.head(owner.token, owner.head), element);
    }
    const float4& x = elements[i];
    largest = fmaxf(largest, fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))));
  }
  float power = 1.0f;
  if (Store::kIsFp8 && p.dtype == Float::kBFloat16) {
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, shuffle_xor(largest, mask));
    power = power_to_float16(largest);
  }
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) {
    const int quad = lane + 32 * i;
    if (4 * quad >= kHeadSize) continue;
    const float4& x = elements[i];
    const uint32_t low = rounded<Store::kProduct>(__fmul_rn(x.x, power), __fmul_rn(x.y, power));
    const uint32_t high = rounded<Store::kProduct>(__fmul_rn(x.z, power), __fmul_rn(x.w, power));
    using Tile = QueryTile<kHeadSize>;
    if constexpr (Store::kIsFp8) {
      const int chunk = quad / 4 * 2, at = quad % 4 * 4;
      *reinterpret_cast<uint32_t*>(queries + Tile::offset_bytes(row, chunk) + at) = low;
      *reinterpret_cast<uint32_t*>(queries + Tile::offset_bytes(row, chunk + 1) + at) = high;
    } else {
      auto* to = reinterpret_cast<uint32_t*>(queries + Tile::offset_bytes(row, quad / 2) + quad % 2 * 8);
      to[0] = low;
      to[1] = high;
    }
  }
  return power;
}

// Loads the 16 rows of a warp from row first_row on: the queries, and rows[0] to rows[15]. The queries of rows past
// num_rows stay arbitrary: nobody needs these rows.
template <class Store, int kHeadSize>
__device__ inline void load_rows(const AttentionProblem& p, const Segment& segment, int first_row, char* queries,
                                 TileRow* rows) {
  const int lane = threadIdx.x % 32;
  float power = 1.0f;  // of the row of this lane
  const int count = min(16, segment.num_rows - first_row);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float row_power = load_row<Store, kHeadSize>(p, segment, first_row + i, queries);
    if (i == lane) power = row_power;
  }
  if (lane >= 16) return;
  TileRow info = {{{0, 0}, 0, INT32_MAX, 0}, 0.0f, 0.0f};
  if (first_row + lane < segment.num_rows) {
    const RowOwner owner(p, segment, first_row + lane);
    info.visible = visible_to(p, segment.sequence, owner.sequence_token);
    const float key_scale = scale_of(p.key, segment.kv_head);
    info.coefficient = __fdiv_rn(Scoring::coefficient(p.options, key_scale), power);
    info.slope = slope_of(p.options, owner.head);
  }
  rows[lane] = info;
}

// Turns one row's products with the keys of a step into scores: the elements 2 * high and 2 * high + 1 of each block.
__device__ inline void score_row(StepScores& scores, int high, const Scoring& scoring, const TileRow& row, int key) {
  if (scoring.is_plain()) {
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i) {
      float& score = scores[i / 2][2 * high + i % 2];
      score = __fmul_rn(score, row.coefficient);
    }
    return;
  }
  const int first = key + static_cast<int>(threadIdx.x) % 4 * 2 - row.visible.position;
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) {
    float& score = scores[i / 2][2 * high + i % 2];
    score = scoring(score, row.coefficient, row.slope, first + i / 2 * 8 + i % 2);
  }
}

// Replaces the scores of keys that the row does not see.
__device__ inline void hide_keys(StepScores& scores, int high, const TileRow& row, const uint32_t (&flags)[2],
                                 int key) {
  const int first = static_cast<int>(threadIdx.x) % 4 * 2;
  uint32_t seen = 0;  // bit i: the key of element i
#pragma unroll 1
  for (int i = 0; i < kStep / 4; ++i) {
    const int step_key = first + i / 2 * 8 + i % 2;
    if ((flags[step_key / 32] >> step_key % 32 & 1) != 0 && row.visible.sees(key + step_key)) seen |= 1u << i;
  }
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) {
    if ((seen >> i & 1) == 0) scores[i / 2][2 * high + i % 2] = kNoScore;
  }
}

// The sum of weight * value over the values of a column that are infinite or NaN and that the row sees, of `count` keys
// from `step_key` on. `values` are the rows of these keys, and `weights` has pairs of 16-bit weights of the step.
template <class Store, int kRowBytes>
__device__ inline float sum_specials(const TileRow& row, const uint32_t* weights, const char* values, int column,
                                     const uint32_t (&flags)[2], int key, int step_key, int count) {
  float sum = 0.0f;
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const float value = value_at<Store, kRowBytes>(values, i, column);
    if (fabsf(value) < -kNoScore) continue;
    const int at = step_key + i;
    if ((flags[at / 32] >> at % 32 & 1) == 0 || !row.visible.sees(key + at)) continue;
    const auto weight = static_cast<uint16_t>(weights[at / 2] >> at % 2 * 16);
    sum = __fmaf_rn(load_float16(weight, Store::kProduct), value, sum);
  }
  return sum;
}

// Writes the weights of a warp's 16 rows to shared memory: pairs of neighbouring keys.
__device__ inline void store_weights(uint32_t* to, const StepOperands& weights) {
  const int lane = threadIdx.x % 32;
  sync_warp();
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) {
    to[(lane / 4 + 8 * (i % 2)) * (kStep / 2) + i / 2 * 4 + lane % 4] = weights[i / 4][i % 4];
  }
  sync_warp();
}

}  // namespace multikv::gpu
