// Norms, rotates and caches heads. A few lanes share a head, which they hold in registers.
#pragma once

#include "cuda/norm_rope/head_output.cuh"
#include "cuda/norm_rope/head_vectors.cuh"

namespace multikv::gpu {

// The norms that a kernel can compute.
enum class HeadNorm : uint8_t {
  kNone,
  kHeads,  // of each head
  kRows,   // of all queries of a token, and of all its keys; a thread block has all heads of a token
};

// The work of the groups of lanes: kHeads heads of a token for each.
struct HeadGroups {
  HeadLanes lanes;
  int lane_bits;  // lanes.count is 2^lane_bits
  int per_block;  // groups of a thread block
  TokenParts parts;
  uint32_t num_parts, num_tokens;
  bool only_rotated;  // heads are rotated in place: vectors that are not rotated are not written

  // The groups of thread blocks of kThreads threads, with `heads` heads each.
  static HeadGroups of(const QkNormRopeCacheParams& p, int heads, bool has_values) {
    HeadGroups groups{};
    groups.lanes = HeadLanes::of(p.rope, p.head_size, 16 / static_cast<int>(num_bytes(p.dtype)));
    while (1 << groups.lane_bits < groups.lanes.count) ++groups.lane_bits;
    groups.per_block = kThreads >> groups.lane_bits;
    groups.parts = TokenParts::of(p, heads, has_values);
    groups.num_tokens = static_cast<uint32_t>(p.slots.num_tokens);
    groups.num_parts = static_cast<uint32_t>(groups.parts.count(groups.num_tokens));
    return groups;
  }
};

// A thread's lane in its group, and the group's heads.
struct HeadThread {
  int lane;
  bool is_active, is_rotated;  // whether the lane's vectors are written; whether they are pairs that are rotated
  TokenPart part;
  LaneVectors vectors;

  __device__ static __forceinline__ HeadThread of(const HeadGroups& groups, uint32_t block, int elements) {
    const int thread = static_cast<int>(threadIdx.x), lane = thread & (groups.lanes.count - 1);
    const int group = thread >> groups.lane_bits;
    const uint32_t number = block * groups.per_block + group;
    const bool is_group = group < groups.per_block && number < groups.num_parts;
    TokenPart part = groups.parts.at(is_group ? number : 0);
    const bool is_token = part.token < groups.num_tokens;  // the last run may go past the last token
    if (!is_token) part.token = 0;
    return {lane, is_group && is_token, false, part, LaneVectors(groups.lanes, lane, elements)};
  }
  // Sets is_active and is_rotated from the position of the token and the kind of the heads.
  __device__ __forceinline__ void check_position(const HeadGroups& groups, const Rope& rope, int64_t position) {
    const bool is_in_pairs = lane < groups.lanes.rotated;
    if (groups.only_rotated && !is_in_pairs) is_active = false;
    is_active = is_active && has_positions(rope, part.token, position);
    is_rotated = is_active && is_in_pairs && !part.is_value();
  }
};

constexpr int kMaxRowHeads = 128;  // the queries, or the keys, of a token that HeadNorm::kRows can norm
constexpr int kMaxRowThreads = 384;

// Returns, for HeadNorm::kRows, the sum of the squares of all heads that are normed together with those of the caller.
// `sums` are the sums of the caller's heads. All threads of the thread block call.
template <int kHeads>
__device__ __forceinline__ float sum_row(const TokenParts& parts, const HeadThread& thread,
                                         const float (&sums)[kHeads]) {
  __shared__ float shared[2][kMaxRowHeads];
  const TokenPart& part = thread.part;
  const bool is_first_lane = thread.is_active && thread.lane == 0;
  const int side = part.is_query() ? 0 : 1;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const uint32_t head = part.index * kHeads + h;
    if (is_first_lane && !part.is_value() && head < parts.side(part).num_heads) shared[side][head] = sums[h];
  }
  __syncthreads();
  float totals[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t num_heads = parts.sides[i].num_heads;
    float four[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int head = static_cast<int>(threadIdx.x % 32) * 4 + k;
      four[k] = head < num_heads ? shared[i][head] : 0.0f;
    }
    totals[i] = (four[0] + four[1]) + (four[2] + four[3]);
  }
  sum_of_lanes(totals, 32);
  return totals[side];
}

// Norms the heads of a part, unless they are values. All lanes of the warp must call, and for HeadNorm::kRows all
// threads of the thread block. For HeadNorm::kHeads and parts of one head, the caller has read `weights`; otherwise
// they are read here, to save registers.
template <HeadNorm kNorm, Float kDtype, int kHeads>
__device__ __forceinline__ void norm_heads(const HeadGroups& groups, const QkNormRopeCacheParams& p,
                                           const HeadThread& thread,
                                           typename HeadVectors<kDtype>::VectorWeights& weights,
                                           HeadVectors<kDtype> (&heads)[kHeads]) {
  constexpr bool kAreRows = kNorm == HeadNorm::kRows;
  const NormRopeHeads& side = groups.parts.side(thread.part);
  const float bias = p.norm.weight_bias;
  float sums[kHeads];
  sum_heads<kDtype>(sums, heads, groups.lanes, thread.lane, thread.vectors.exists);
  if constexpr (kAreRows) sums[0] = sum_row(groups.parts, thread, sums);
  const auto size = static_cast<float>(kAreRows ? side.num_heads * p.head_size : p.head_size);
  if (thread.part.is_value()) return;
  if (!kAreRows && kHeads > 1) read_weights<kDtype>(weights, side.weight, bias, thread.vectors, 0);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (kAreRows && h > 0) sums[h] = sums[0];
    if constexpr (kAreRows) {  // every element of the row has a weight of its own
      const int64_t head = thread.part.index * kHeads + h;
      if (head >= side.num_heads) continue;
      read_weights<kDtype>(weights, side.weight, bias, thread.vectors, head * p.head_size);
    }
    heads[h].norm(reciprocal_root(p.norm, sums[h], size), weights);
  }
}

template <Float kDtype, Float kTable, int kHeads>
__device__ __forceinline__ void rotate_heads(bool is_neox,
                                             const AngleVectors<kTable, HeadVectors<kDtype>::kElements>& angles,
                                             HeadVectors<kDtype> (&heads)[kHeads]) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
    rotate<kDtype, kTable, HeadVectors<kDtype>::kElements>(is_neox, heads[h].vectors[0], heads[h].vectors[1], angles);
}

// Norms and rotates heads in the order of p. If there is a norm, all lanes of the warp must call, and for
// HeadNorm::kRows all threads of the thread block.
template <HeadNorm kNorm, Float kDtype, Float kTable, int kHeads>
__device__ __forceinline__ void norm_and_rotate(const HeadGroups& groups, const QkNormRopeCacheParams& p,
                                                const HeadThread& thread, int64_t position,
                                                typename HeadVectors<kDtype>::VectorWeights& weights,
                                                HeadVectors<kDtype> (&heads)[kHeads]) {
  constexpr int kElements = HeadVectors<kDtype>::kElements;
  AngleVectors<kTable, kElements> angles;
  if (thread.is_rotated)
    angles = read_angles<kTable, kElements>(p.rope, thread.part.token, position, thread.lane * kElements);
  const bool is_normed = kNorm != HeadNorm::kNone && p.order != NormOrder::kNone;
  const bool rotates_first = !is_normed || p.order == NormOrder::kAfterRope;
  if (thread.is_rotated && rotates_first) rotate_heads<kDtype, kTable>(p.rope.is_neox, angles, heads);
  if constexpr (kNorm != HeadNorm::kNone) {
    // A warp whose lanes all have values needs no norm. Otherwise all its lanes take part in the sums.
    if (is_normed && (kNorm == HeadNorm::kRows || ballot(!thread.part.is_value()) != 0))
      norm_heads<kNorm>(groups, p, thread, weights, heads);
    if (thread.is_rotated && !rotates_first) rotate_heads<kDtype, kTable>(p.rope.is_neox, angles, heads);
  }
}

// Processes the heads of a group of lanes.
template <HeadNorm kNorm, Float kDtype, Float kTable, int kHeads, bool kAnyCache>
__device__ __forceinline__ void process_heads(const HeadGroups& groups, const QkNormRopeCacheParams& p,
                                              uint32_t block) {
  using Head = HeadVectors<kDtype>;
  HeadThread thread = HeadThread::of(groups, block, Head::kElements);
  if (kNorm == HeadNorm::kNone && !thread.is_active) return;
  const TokenPart& part = thread.part;
  const NormRopeHeads& side = groups.parts.side(part);
  const uint32_t first_head = part.index * kHeads, num_heads = static_cast<uint32_t>(side.num_heads);
  const PrefetchedIndex position_index = part.position(p), slot_index = part.slot(p);
  Head heads[kHeads];
  float scales[kHeads];
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const uint32_t head = min(first_head + h, num_heads - 1);
    heads[h].read(side.source.head(part.token, head), thread.vectors);
    scales[h] = scale_of(p, part, head);
  }
  typename Head::VectorWeights weights;
  if (kNorm == HeadNorm::kHeads && kHeads == 1 && !part.is_value())
    read_weights<kDtype>(weights, side.weight, p.norm.weight_bias, thread.vectors, 0);

  const int64_t position = position_index.value();
  thread.check_position(groups, p.rope, position);
  norm_and_rotate<kNorm, kDtype, kTable>(groups, p, thread, position, weights, heads);
  if (!thread.is_active) return;
  const HeadWriter<kAnyCache> writer(p, part, slot_index.value());
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (first_head + h >= num_heads) continue;
    writer.template write<kDtype, Head::kElements>(first_head + h, thread.vectors.dims, thread.vectors.exists,
                                                   scales[h], heads[h].vectors);
  }
}

}  // namespace multikv::gpu
