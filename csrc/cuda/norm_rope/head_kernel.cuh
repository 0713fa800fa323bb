// Norms, rotates and caches heads. A few lanes share a head, which they hold in registers.
#pragma once

#include "cuda/cache/packed_keys.cuh"
#include "cuda/core/rotate_pairs.cuh"
#include "cuda/norm_rope/head_vectors.cuh"
#include "cuda/norm_rope/row_norm.cuh"

namespace multikv::gpu {

enum class HeadKind : uint8_t { kQuery, kKey, kValue };

// The work of the groups of lanes: a head of a token for each. Groups are numbered token by token; the groups of a
// token are those of queries, of keys, and of values. A group with several heads would load cosines, sines and weights
// once for all of them, but it needs more registers. That leaves fewer resident threads, and was slower at all sizes.
struct HeadGroups {
  HeadLanes lanes;
  Divisor per_token;
  int64_t queries, keys;  // groups of a token
  int64_t num_groups;
  bool only_rotated;  // heads are rotated in place: vectors that are not rotated are neither read nor written
};

struct HeadGroup {
  int64_t token, head;
  HeadKind kind;

  __device__ __forceinline__ bool is_query() const { return kind == HeadKind::kQuery; }
  __device__ __forceinline__ bool is_value() const { return kind == HeadKind::kValue; }
  // The source, the output and the weight of the group's kind of heads, if the head is not a value.
  __device__ __forceinline__ const NormRopeHeads& side(const QkNormRopeCacheParams& p) const {
    return is_query() ? p.query : p.key;
  }
  __device__ __forceinline__ const TokenHeads& source(const QkNormRopeCacheParams& p) const {
    return is_value() ? p.value : side(p).source;
  }
  // The index of the token's slot, which queries do not need.
  __device__ __forceinline__ PrefetchedIndex slot_index(const QkNormRopeCacheParams& p) const {
    if (is_query() || !p.slots.mapping.is_given()) return {};
    return PrefetchedIndex(p.slots.mapping, token);
  }
};

__device__ __forceinline__ HeadGroup group_at(const HeadGroups& groups, int64_t group) {
  const auto token = static_cast<int64_t>(quotient_of(group, groups.per_token));
  const int64_t i = group - token * groups.per_token.signed_value();
  if (i < groups.queries) return {token, i, HeadKind::kQuery};
  if (i < groups.queries + groups.keys) return {token, i - groups.queries, HeadKind::kKey};
  return {token, i - groups.queries - groups.keys, HeadKind::kValue};
}

// The prefetched positions of a token: one, or three for multimodal rotary embedding.
struct TokenPositions {
  PrefetchedIndex rows[3];

  __device__ static __forceinline__ TokenPositions read(const Rope& rope, int64_t token) {
    TokenPositions positions;
    if (!rope.is_on) return positions;
    positions.rows[0] = PrefetchedIndex(rope.positions, token);
    if (!rope.section.is_given) return positions;
    positions.rows[1] = PrefetchedIndex(rope.positions.row(1), token);
    positions.rows[2] = PrefetchedIndex(rope.positions.row(2), token);
    return positions;
  }
  __device__ __forceinline__ bool are_good(const Rope& rope) const {
    if (!rope.is_on) return true;
    bool are_good = is_in(rope, rows[0].value());
    if (rope.section.is_given) are_good = are_good && is_in(rope, rows[1].value()) && is_in(rope, rows[2].value());
    return are_good;
  }
  // The row of the table for a pair.
  __device__ __forceinline__ const char* row(const Rope& rope, int64_t pair) const {
    if (!rope.section.is_given) return rope.cos_sin_cache.row(rows[0].value());
    const int row = rope.section.row_of(pair);
    return rope.cos_sin_cache.row(row == 0 ? rows[0].value() : row == 1 ? rows[1].value() : rows[2].value());
  }

 private:
  __device__ static __forceinline__ bool is_in(const Rope& rope, int64_t position) {
    return static_cast<uint64_t>(position) < static_cast<uint64_t>(rope.num_positions);
  }
};

// Reads the cosines and sines of the pairs i, i + 1, ...
template <Float kTable, int kPairs>
__device__ __forceinline__ Angles<kPairs> token_angles(const Rope& rope, const TokenPositions& positions, int64_t i) {
  if (!rope.section.is_given) return read_angles<kTable, kPairs>(positions.row(rope, i), rope.num_pairs(), i);
  Angles<kPairs> angles;
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    const Angles<1> one = read_angles<kTable, 1>(positions.row(rope, i + k), rope.num_pairs(), i + k);
    angles.cosines[k] = one.cosines[0];
    angles.sines[k] = one.sines[0];
  }
  return angles;
}

// The elements of a head of a slot in a cache of keys or values.
struct HeadEntry {
  const HeadCache& cache;
  bool is_packed;
  BlockOffset at;
  int64_t head;

  __device__ __forceinline__ char* element(int64_t dim, int64_t element_bytes) const {
    if (is_packed) return cache.element(at, head, dim, element_bytes, divide_index);
    return cache.block(at.block) + at.offset * cache.stride_row_bytes + head * cache.stride_head_bytes +
           dim * element_bytes;
  }
  // Writes neighbouring elements. If slots are packed, each of them lies in another row of the cache (PackedCache).
  template <int kBytes, int kElementBytes>
  __device__ __forceinline__ void write(int64_t dim, const Pack<kBytes>& codes) const {
    if (!cache.packs_slots) return codes.template write<true>(element(dim, kElementBytes));
#pragma unroll
    for (int i = 0; i < kBytes / kElementBytes; ++i) {
      Pack<kElementBytes> one;
      one.words[0] = codes.words[i * kElementBytes / 4] >> (i * kElementBytes % 4 * 8);
      one.write(element(dim + i, kElementBytes));
    }
  }
};

// Writes kElements elements from element `dim` on to a head of a cache.
template <Float kDtype, int kElements>
__device__ __forceinline__ void write_to_cache(const HeadEntry& entry, int64_t dim, float scale,
                                               const FloatPack<kDtype, kElements>& elements) {
  if (entry.cache.codec.is_float()) {
    entry.write<kElements * num_bytes(kDtype), num_bytes(kDtype)>(dim, elements);
  } else {
    const Quantise<kDtype, kElements> quantise(scale, entry.cache.codec.element);
    entry.write<kElements, 1>(dim, quantise(elements));
  }
}

// Writes a vector of a query to query.out.
template <Float kDtype, int kElements>
__device__ __forceinline__ void write_query(const QkNormRopeCacheParams& p, int64_t token, int64_t head, int64_t dim,
                                            float scale, const FloatPack<kDtype, kElements>& elements) {
  char* to = p.query.out.head(token, head);
  if (!p.quantises_queries()) return elements.template write<true>(to + dim * num_bytes(kDtype));
  const Quantise<kDtype, kElements> quantise(scale, p.query_element);
  quantise(elements).template write<true>(to + dim);
}

// A thread's two vectors of a head.
template <Float kDtype, Float kTable>
struct HeadVectors {
  static constexpr int kElements = 16 / static_cast<int>(num_bytes(kDtype));
  using Vector = FloatPack<kDtype, kElements>;

  Vector vectors[2];
  int64_t dims[2];  // the first elements of the two vectors
  bool exists[2];

  __device__ __forceinline__ HeadVectors(const HeadLanes& lanes, int lane) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int vector = lanes.vector_of(lane, half);
      exists[half] = vector < lanes.vectors;
      dims[half] = static_cast<int64_t>(vector) * kElements;
    }
  }

  __device__ __forceinline__ void read(const char* head, bool is_active) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      vectors[half] = Vector{};
      if (is_active && exists[half]) {
        vectors[half] = Vector::template read<true>(head + dims[half] * num_bytes(kDtype));
      }
    }
  }

  __device__ __forceinline__ void read_weights(Weights<kElements> (&weights)[2], const NormWeight& weight,
                                               float weight_bias) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (!exists[half]) continue;
      weights[half] = Weights<kElements>::template read<kDtype, true>(weight, weight_bias, dims[half], kElements);
    }
  }

  __device__ __forceinline__ void rotate(bool is_neox, const Angles<kElements>& angles) {
    if (is_neox) {
      gpu::rotate<kDtype, kTable, kElements, true>(vectors[0], vectors[1], angles.cosines, angles.sines);
    } else {
      gpu::rotate<kDtype, kTable, kElements, false>(vectors[0], vectors[1], angles.cosines, angles.sines);
    }
  }

  // Norms the head, unless it is a value: then `weight` is nullptr. All lanes of the warp must call.
  __device__ __forceinline__ void norm(const QkNormRopeCacheParams& p, const HeadLanes& lanes, int lane,
                                       const NormWeight* weight, const Weights<kElements> (&weights)[2]) {
    const float first = sum_of_squares<kDtype, kElements>(vectors[0].words);
    const float second = sum_of_squares<kDtype, kElements>(vectors[1].words);
    const float sum = sum_of_lanes(sum_in_order(lanes, lane, first, second), lanes.count);
    const float factor = reciprocal_root(p.norm, sum, static_cast<float>(p.head_size));
    if (weight == nullptr) return;
#pragma unroll
    for (int half = 0; half < 2; ++half)
      vectors[half] = normed<kDtype, kElements>(vectors[half], factor, weight->is_given(), weights[half]);
  }

 private:
  // Returns the sum of the squares of the vectors 2 * lane and 2 * lane + 1, which other lanes may hold. `first` and
  // `second` are the sums of the squares of this lane's own vectors.
  __device__ __forceinline__ float sum_in_order(const HeadLanes& lanes, int lane, float first, float second) const {
    if (lanes.are_in_order()) return first + second;
    const int begin = static_cast<int>(threadIdx.x % 32) - lane;
    float sums[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int vector = 2 * lane + half, holder = vector < lanes.vectors ? lanes.holder_of(vector) : 0;
      const float from_first = shuffle(first, begin + holder / 2), from_second = shuffle(second, begin + holder / 2);
      sums[half] = vector >= lanes.vectors ? 0.0f : holder % 2 == 0 ? from_first : from_second;
    }
    return sums[0] + sums[1];
  }
};

// Writes a thread's vectors of a head to query.out, or to key.out and the cache.
template <Float kDtype, Float kTable>
__device__ __forceinline__ void write_head(const QkNormRopeCacheParams& p, const HeadGroup& group, int64_t slot,
                                           float scale, const HeadVectors<kDtype, kTable>& head) {
  constexpr int kElements = HeadVectors<kDtype, kTable>::kElements;
  const bool is_query = group.kind == HeadKind::kQuery, is_value = group.kind == HeadKind::kValue;
  const bool is_cached = !is_query && is_slot(p.blocks(), slot);
  const BlockOffset at = is_cached ? split(p.blocks(), slot) : BlockOffset{0, 0};
  const HeadEntry entry = {is_value ? p.value_cache : p.key_cache, p.is_packed, at, group.head};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (!head.exists[half]) continue;
    const auto& vector = head.vectors[half];
    const int64_t dim = head.dims[half];
    if (is_query) {
      write_query<kDtype, kElements>(p, group.token, group.head, dim, scale, vector);
      continue;
    }
    if (!is_value && p.key.out.data != nullptr)
      vector.template write<true>(p.key.out.head(group.token, group.head) + dim * num_bytes(kDtype));
    if (is_cached) write_to_cache<kDtype, kElements>(entry, dim, scale, vector);
  }
}

// The scale that a head is quantised with; 1 if it is not quantised.
__device__ __forceinline__ float scale_of(const QkNormRopeCacheParams& p, const HeadGroup& group) {
  if (group.kind == HeadKind::kQuery) return p.query_scale == nullptr ? 1.0f : *p.query_scale;
  const HeadCache& cache = group.kind == HeadKind::kValue ? p.value_cache : p.key_cache;
  return cache.scale == nullptr ? 1.0f : *cache.scale_of(group.head);
}

// The minimum number of resident thread blocks per multiprocessor: loads are hidden by many threads.
template <bool kHasNorm>
constexpr int kHeadBlocks = kHasNorm ? 8 : 10;

// Norms and rotates a head in the order of p. If there is a norm, all lanes of the warp call, because they add up sums.
// Values are not normed. Lanes with is_rotated hold pairs that are rotated.
template <bool kHasNorm, Float kDtype, Float kTable>
__device__ __forceinline__ void norm_and_rotate(const QkNormRopeCacheParams& p, const HeadLanes& lanes, int lane,
                                                const TokenPositions& positions, bool is_rotated, bool is_value,
                                                const NormRopeHeads& side,
                                                const Weights<HeadVectors<kDtype, kTable>::kElements> (&weights)[2],
                                                HeadVectors<kDtype, kTable>& head) {
  constexpr int kElements = HeadVectors<kDtype, kTable>::kElements;
  const bool rotates_first = !kHasNorm || p.order == NormOrder::kAfterRope;
  if (is_rotated && rotates_first) {
    head.rotate(p.rope.is_neox, token_angles<kTable, kElements>(p.rope, positions, lane * kElements));
  }
  if constexpr (kHasNorm) {
    // A warp whose lanes all have values needs no norm. Otherwise all its lanes take part in the sums.
    if (ballot(!is_value) != 0) head.norm(p, lanes, lane, is_value ? nullptr : &side.weight, weights);
    if (is_rotated && !rotates_first) {
      head.rotate(p.rope.is_neox, token_angles<kTable, kElements>(p.rope, positions, lane * kElements));
    }
  }
}

template <Float kDtype, Float kTable, bool kHasNorm>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, kHeadBlocks<kHasNorm>)
    head_kernel(const HeadGroups groups, const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p) {
  using Vectors = HeadVectors<kDtype, kTable>;
  constexpr int kElements = Vectors::kElements;
  const HeadLanes& lanes = groups.lanes;
  const int lane = static_cast<int>(threadIdx.x) & (lanes.count - 1);
  const int64_t number = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / lanes.count;
  bool is_active = number < groups.num_groups;
  if (!kHasNorm && !is_active) return;
  const HeadGroup group = group_at(groups, is_active ? number : 0);
  const bool is_value = group.is_value();
  const NormRopeHeads& side = group.side(p);

  const TokenPositions positions = TokenPositions::read(p.rope, group.token);
  const PrefetchedIndex slot_index = group.slot_index(p);
  Vectors head(lanes, lane);
  if (groups.only_rotated && lane >= lanes.rotated) is_active = false;
  head.read(group.source(p).head(group.token, group.head), is_active);
  Weights<kElements> weights[2] = {};
  if (kHasNorm && !is_value) head.read_weights(weights, side.weight, p.norm.weight_bias);
  const float scale = scale_of(p, group);

  is_active = is_active && positions.are_good(p.rope);
  const bool is_rotated = is_active && !is_value && lane < lanes.rotated;
  norm_and_rotate<kHasNorm>(p, lanes, lane, positions, is_rotated, is_value, side, weights, head);
  if (is_active) write_head(p, group, slot_index.value(), scale, head);
}

}  // namespace multikv::gpu
