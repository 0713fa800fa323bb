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

// Reads row `row` of a tile: its elements to shared memory, in the order that multiply_keys expects, and its TileRow.
// All lanes of a warp call it with the same row. A row past num_rows is zeros, and sees nothing.
template <class Store, int kHeadSize>
__device__ inline void load_row(const AttentionProblem& p, const Segment& segment, int row, char* queries,
                                TileRow* rows) {
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
  if (lane != 0) return;
  TileRow info = {{{0, 0}, 0, INT32_MAX, 0}, 0.0f, 0.0f};
  if (is_row) {
    info.visible = visible_to(p, segment.sequence, owner.sequence_token);
    const float key_scale = scale_of(p.key, segment.kv_head);
    info.coefficient = __fdiv_rn(Scoring::coefficient(p.options, key_scale), power);
    info.slope = slope_of(p.options, owner.head);
  }
  rows[row] = info;
}

}  // namespace multikv::gpu
