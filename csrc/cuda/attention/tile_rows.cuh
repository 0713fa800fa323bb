// The query rows of a tile.
#pragma once

#include "cuda/attention/partials.cuh"
#include "cuda/attention/tile_math.cuh"

namespace multikv::gpu {

// What a kernel needs to know of a row to compute its scores.
struct TileRow {
  Visible visible;
  float coefficient, slope, factor;  // of Scoring
};

// The power of two that brings a row's largest magnitude, which all lanes know, to the top of float16's range; 1 if the
// magnitude is infinite, NaN or 0.
__device__ inline float power_to_float16(float largest) {
  if (!(largest > 0.0f) || largest == -kNoScore) return 1.0f;
  const int exponent = static_cast<int>(__float_as_uint(largest) >> 23) - 127;
  return __uint_as_float(static_cast<uint32_t>(127 + min(14 - exponent, 100)) << 23);
}

// A query row as operands of multiply_add: the lane's elements of each multiplication.
template <int kHeadSize>
using QueryOperands = uint32_t[kHeadSize / 16][2];

// Reads the elements of a query for all multiplications, zeros past the end.
template <class Store, int kHeadSize>
__device__ inline void read_query(QueryOperands<kHeadSize>& out, const AttentionProblem& p, const char* query,
                                  int num_elements) {
#pragma unroll
  for (int i = 0; i < kHeadSize / 8; ++i) out[i / 2][i % 2] = 0;
  if (p.has_query_vectors) {
#pragma unroll
    for (int i = 0; i < kHeadSize / 16; ++i) {
      load_vector_if(operand_element<Store>(i) < num_elements, out[i], query + operand_element<Store>(i) * 2);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kHeadSize / 4; ++i) {
    const int element = operand_element<Store>(i / 4) + i % 4;
    if (element >= num_elements) continue;
    const uint32_t bits = reinterpret_cast<const uint16_t*>(query)[element];
    out[i / 4][i % 4 / 2] |= bits << (i % 2 * 16);
  }
}

// Multiplies bfloat16 numbers by a power of two that brings them into float16's range. Returns the power.
template <int kHeadSize>
__device__ inline float convert_to_float16(QueryOperands<kHeadSize>& query) {
  const auto low = [](uint32_t pair) { return __uint_as_float(pair << 16); };
  const auto high = [](uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); };
  float largest = 0.0f;
#pragma unroll
  for (int i = 0; i < kHeadSize / 8; ++i) {
    const uint32_t pair = query[i / 2][i % 2];
    largest = fmaxf(largest, fmaxf(fabsf(low(pair)), fabsf(high(pair))));
  }
  largest = fmaxf(largest, shuffle_xor(largest, 1));
  const float power = power_to_float16(fmaxf(largest, shuffle_xor(largest, 2)));
#pragma unroll
  for (int i = 0; i < kHeadSize / 8; ++i) {
    uint32_t& pair = query[i / 2][i % 2];
    pair = floats_to_half(__fmul_rn(low(pair), power), __fmul_rn(high(pair), power));
  }
  return power;
}

// Loads a row of a tile, or zeros if the tile has no such row. Lanes with the same row are neighbours. Returns the
// power of two that the row was multiplied by.
template <class Store, int kHeadSize>
__device__ inline float load_query(QueryOperands<kHeadSize>& out, const AttentionProblem& p, const Segment& segment,
                                   int row) {
  const bool is_row = row < segment.num_rows;
  const RowOwner owner(p, segment, is_row ? row : 0);
  read_query<Store, kHeadSize>(out, p, p.query.head(owner.token, owner.head), is_row ? p.key_size : 0);
  if (Store::kIsFp8 && p.dtype == Float::kBFloat16) return convert_to_float16<kHeadSize>(out);
  return 1.0f;
}

// `power` is what load_query() returned for the row.
__device__ inline TileRow tile_row(const AttentionProblem& p, const Segment& segment, const Scoring& scoring, int row,
                                   float power) {
  if (row >= segment.num_rows) return {{{0, 0}, 0, INT32_MAX, 0}, 0.0f, 0.0f, 1.0f};
  constexpr float kSmallest = 0x1p-126f;  // a factor must be greater than 0
  const RowOwner owner(p, segment, row);
  const float coefficient = __fdiv_rn(Scoring::coefficient(p.options, scale_of(p.key, segment.kv_head)), power);
  return {visible_to(p, segment.sequence, owner.sequence_token), coefficient, slope_of(p.options, owner.head),
          fmaxf(scoring.factor(coefficient), kSmallest)};
}

// Turns the products of a row with the keys of a step into numbers x (score = x * factor, see Scoring). The lane has
// two numbers of the row in every scores[n]: elements 2 * high and 2 * high + 1.
__device__ inline void score_row(StepScores& scores, int high, const Scoring& scoring, const TileRow& row, int key) {
  if (scoring.is_plain) return;
  const int first = key + static_cast<int>(threadIdx.x) % 4 * 2 - row.visible.position;
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) {
    float& score = scores[i / 2][2 * high + i % 2];
    score = scoring(score, row.coefficient, row.slope, first + i / 2 * 8 + i % 2);
  }
}

// Which of the keys of a step a row sees: bit i stands for key `key` + i.
__device__ inline uint64_t seen_keys(const Visible& visible, int key) {
  const auto first = [](int count) { return count <= 0 ? 0 : count >= 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1; };
  uint64_t seen = first(visible.keys.end - key) & ~first(visible.keys.begin - key);
  if (visible.mask_begin < key + kStep) {
    const int distance = key - visible.mask_begin;
    if (distance >= 64) seen = 0;
    else seen &= distance >= 0 ? visible.mask >> distance : visible.mask << -distance | first(-distance);
  }
  return seen;
}

// Replaces the scores of keys that the row does not see. Bit i of `valid` says whether key `key` + i can be read.
__device__ inline void hide_keys(StepScores& scores, int high, const Visible& visible, uint64_t valid, int key) {
  const uint64_t seen = (seen_keys(visible, key) & valid) >> threadIdx.x % 4 * 2;
  const uint32_t halves[2] = {static_cast<uint32_t>(seen), static_cast<uint32_t>(seen >> 32)};
#pragma unroll
  for (int i = 0; i < kStep / 4; ++i) {
    const int bit = i / 2 * 8 + i % 2;
    if ((halves[bit / 32] >> bit % 32 & 1) == 0) scores[i / 2][2 * high + i % 2] = kNoScore;
  }
}

// Returns the sum of weight * value over the values of a column that are infinite or NaN and that the row sees. The sum
// is over `count` keys of the step at `key`, from key + step_key on. `values` holds the values of these keys, and
// `weights` the row's 16-bit weights of the whole step, in pairs. Bit i of `flags` says whether key i of the step can
// be read.
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
