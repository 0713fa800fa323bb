// Which token and which heads a group of lanes, or a thread block, works on, and the angles of the token's position.
#pragma once

#include "cuda/core/divide.cuh"
#include "cuda/core/indices.cuh"
#include "cuda/core/rope_angles.cuh"
#include "params/norm_rope_params.h"

namespace multikv::gpu {

enum class HeadKind : uint8_t { kQuery, kKey, kValue };

// Some heads of one kind of a token: part `index` of the heads of this kind.
struct TokenPart {
  uint32_t token, index;
  HeadKind kind;

  __device__ __forceinline__ bool is_query() const { return kind == HeadKind::kQuery; }
  __device__ __forceinline__ bool is_value() const { return kind == HeadKind::kValue; }
  __device__ __forceinline__ const HeadCache& cache(const QkNormRopeCacheParams& p) const {
    return is_value() ? p.value_cache : p.key_cache;
  }
  __device__ __forceinline__ PrefetchedIndex position(const QkNormRopeCacheParams& p) const {
    return p.rope.is_on ? PrefetchedIndex(p.rope.positions, token) : PrefetchedIndex();
  }
  // The index of the token's slot, which queries do not need.
  __device__ __forceinline__ PrefetchedIndex slot(const QkNormRopeCacheParams& p) const {
    const bool is_needed = !is_query() && p.slots.mapping.is_given();
    return is_needed ? PrefetchedIndex(p.slots.mapping, token) : PrefetchedIndex();
  }
};

// The parts of all tokens: fewer than 2^32. The parts of a token are, in this order, `queries` parts of its queries,
// `keys` parts of its keys, and as many of its values, if these have parts. A run is 2^run_bits neighbouring tokens.
// Parts are numbered run by run: first part 0 of each token of the run, then part 1 of each, and so on.
struct TokenParts {
  Divisor32 per_token;
  uint32_t queries, keys;
  int run_bits;

  static TokenParts of(const QkNormRopeCacheParams& p, int64_t heads_per_part, bool has_values) {
    const auto parts_of = [&](int64_t heads) { return (heads + heads_per_part - 1) / heads_per_part; };
    const int64_t queries = parts_of(p.query.num_heads), keys = parts_of(p.key.num_heads);
    return {Divisor32::of(queries + (has_values ? 2 : 1) * keys), static_cast<uint32_t>(queries),
            static_cast<uint32_t>(keys), 0};
  }
  // The number of parts, including those of tokens of the last run that do not exist.
  int64_t count(int64_t num_tokens) const {
    const int64_t runs = (num_tokens + (int64_t{1} << run_bits) - 1) >> run_bits;
    return (runs * per_token.value) << run_bits;
  }
  __device__ __forceinline__ TokenPart at(uint32_t number) const {
    const uint32_t in_runs = number >> run_bits, run = per_token.divide(in_runs);
    const uint32_t token = (run << run_bits) + (number & ((1u << run_bits) - 1));
    const uint32_t i = in_runs - run * per_token.value;
    if (i < queries) return {token, i, HeadKind::kQuery};
    if (i < queries + keys) return {token, i - queries, HeadKind::kKey};
    return {token, i - queries - keys, HeadKind::kValue};
  }
};

__device__ __forceinline__ bool is_position(const Rope& rope, int64_t position) {
  return static_cast<uint64_t>(position) < static_cast<uint64_t>(rope.num_positions);
}

// Whether the positions of a token in rows 1 and 2 are in the table, for multimodal rotary embedding.
__device__ __forceinline__ bool has_other_positions(const Rope& rope, int64_t token) {
  return is_position(rope, rope.positions.at(1, token)) && is_position(rope, rope.positions.at(2, token));
}

// Whether all positions of a token are in the table. `position` is the first.
__device__ __forceinline__ bool has_positions(const Rope& rope, int64_t token, int64_t position) {
  if (!rope.is_on) return true;
  return is_position(rope, position) && (!rope.section.is_given || has_other_positions(rope, token));
}

// Replaces the angles of the pairs i, i + 1, ... that take their position from row 1 or 2, for multimodal rotary
// embedding. The loops are not unrolled: in the middle of a kernel, much code that most calls skip makes them slower.
template <Float kTable, int kPairs>
__device__ __forceinline__ void choose_angles(const Rope& rope, int64_t token, int i,
                                              AngleVectors<kTable, kPairs>& angles) {
  using Vectors = AngleVectors<kTable, kPairs>;
  constexpr int kPerWord = kTable == Float::kFloat32 || kPairs == 1 ? 1 : 2;
#pragma unroll 1
  for (int row = 1; row < 3; ++row) {
    const auto others = Vectors::read(rope.cos_sin_cache.row(rope.positions.at(row, token)), rope.num_pairs(), i);
    uint32_t chosen = 0;  // bit k: pair i + k takes its position from this row
#pragma unroll 1
    for (int k = 0; k < kPairs; ++k) chosen |= static_cast<uint32_t>(rope.section.row_of(i + k) == row) << k;
#pragma unroll
    for (int word = 0; word < kPairs / kPerWord; ++word) {
      uint32_t mask = 0;
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) {
        const uint32_t element = kPerWord == 1 ? 0xffffffffu : 0xffffu << (16 * k);
        mask |= (chosen >> (word * kPerWord + k) & 1) != 0 ? element : 0;
      }
      const auto choose = [mask](uint32_t& to, uint32_t other) { to = (to & ~mask) | (other & mask); };
      choose(angles.cosines.words[word], others.cosines.words[word]);
      choose(angles.sines.words[word], others.sines.words[word]);
    }
  }
}

// Reads the cosines and sines of a token's pairs i, i + 1, ...
template <Float kTable, int kPairs>
__device__ __forceinline__ AngleVectors<kTable, kPairs> read_angles(const Rope& rope, int64_t token, int64_t position,
                                                                    int i) {
  auto angles = AngleVectors<kTable, kPairs>::read(rope.cos_sin_cache.row(position), rope.num_pairs(), i);
  if (rope.section.is_given) choose_angles<kTable, kPairs>(rope, token, i, angles);
  return angles;
}

}  // namespace multikv::gpu
