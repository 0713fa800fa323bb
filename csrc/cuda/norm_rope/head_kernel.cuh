// Norms, rotates and caches heads. A few lanes share a head, which they hold in registers.
#pragma once

#include <type_traits>

#include "cuda/norm_rope/flash_writer.cuh"

namespace multikv::gpu {

// The norms that a kernel can compute.
enum class HeadNorm : uint8_t {
  kNone,
  kHeads,  // of each head
  kRows,   // of all queries of a token, and of all its keys; a thread block has all heads of a token
};

constexpr int kMaxRowHeads = 128;  // the queries, or the keys, of a token that HeadNorm::kRows can norm
constexpr int kMaxRowThreads = 384;

// Returns, for HeadNorm::kRows, the sum of the squares of all heads that are normed together with those of the caller.
// `sums` are the sums of the caller's heads. All threads of the thread block call.
template <int kHeads>
__device__ __forceinline__ float sum_row(const HeadGroups& groups, const HeadThread& thread,
                                         const float (&sums)[kHeads]) {
  __shared__ float shared[2][kMaxRowHeads];
  const TokenPart& part = thread.part;
  const bool is_first_lane = thread.is_active && thread.lane == 0;
  const int side = part.is_query() ? 0 : 1;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const uint32_t head = part.index * kHeads + h;
    if (is_first_lane && !part.is_value() && head < groups.side(part).num_heads) shared[side][head] = sums[h];
  }
  __syncthreads();
  float totals[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const auto num_heads = static_cast<int>(groups.sides[i].num_heads);
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
// threads of the thread block. For HeadNorm::kHeads, the caller has read `weights`.
template <HeadNorm kNorm, class VectorWeight, class Head, int kHeads>
__device__ __forceinline__ void norm_heads(const HeadGroups& groups, const HeadThread& thread,
                                           VectorWeight (&weights)[2], Head (&heads)[kHeads]) {
  constexpr bool kAreRows = kNorm == HeadNorm::kRows;
  const HeadSide& side = groups.side(thread.part);
  float sums[kHeads];
  sum_heads(sums, heads, groups.lanes, thread.lane, thread.vectors.exists);
  if constexpr (kAreRows) sums[0] = sum_row(groups, thread, sums);
  const auto size = static_cast<float>(kAreRows ? side.num_heads * groups.head_size : groups.head_size);
  if (thread.part.is_value()) return;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    if (kAreRows && h > 0) sums[h] = sums[0];
    if constexpr (kAreRows) {  // every element of the row has a weight of its own
      const uint32_t head = thread.part.index * kHeads + h;
      if (head >= side.num_heads) continue;
      read_weights(weights, side.weight, groups.norm.weight_bias, thread.vectors, head * groups.head_size);
    }
    heads[h].norm(reciprocal_root(groups.norm, sums[h], size), weights);
  }
}

template <Float kTable, class Head, int kHeads>
__device__ __forceinline__ void rotate_heads(bool is_neox, const AngleVectors<kTable, Head::kElements>& angles,
                                             Head (&heads)[kHeads]) {
#pragma unroll
  for (int h = 0; h < kHeads; ++h)
    rotate<Head::kDtype, kTable, Head::kElements>(is_neox, heads[h].vectors[0], heads[h].vectors[1], angles);
}

// Norms and rotates heads of a token in the order of `groups`. If there is a norm, all lanes of the warp must call, and
// for HeadNorm::kRows all threads of the thread block.
template <HeadNorm kNorm, Float kTable, class VectorWeight, class Head, int kHeads>
__device__ __forceinline__ void norm_and_rotate(const HeadGroups& groups, const Rope& rope, const HeadThread& thread,
                                                int64_t position, VectorWeight (&weights)[2], Head (&heads)[kHeads]) {
  constexpr int kElements = Head::kElements;
  AngleVectors<kTable, kElements> angles;
  if (thread.is_rotated) {
    const char* row = groups.rope.table + position * groups.rope.stride_position_bytes;
    const int pair = thread.lane * kElements;
    angles = AngleVectors<kTable, kElements>::read(row, groups.rope.num_pairs, pair);
    if (groups.rope.has_section) choose_angles<kTable, kElements>(rope, thread.part.token, pair, angles);
  }
  const bool is_normed = kNorm != HeadNorm::kNone && groups.order != NormOrder::kNone;
  const bool rotates_first = !is_normed || groups.order == NormOrder::kAfterRope;
  if (thread.is_rotated && rotates_first) rotate_heads<kTable>(groups.rope.is_neox, angles, heads);
  if constexpr (kNorm != HeadNorm::kNone) {
    // A warp whose lanes all have values needs no norm. Otherwise all its lanes take part in the sums.
    if (is_normed && (kNorm == HeadNorm::kRows || ballot(!thread.part.is_value()) != 0))
      norm_heads<kNorm>(groups, thread, weights, heads);
    if (thread.is_rotated && !rotates_first) rotate_heads<kTable>(groups.rope.is_neox, angles, heads);
  }
}

// Whether groups of lanes have several tokens, which share the weights of the norm.
template <HeadNorm kNorm, int kHeads>
constexpr bool kHasSteps = kNorm == HeadNorm::kHeads && kHeads > 1;

// The weights of a lane's vectors, as process_heads() holds them: for several tokens as floats, else as they are read.
template <HeadNorm kNorm, class Head, int kHeads>
using HeldWeights = std::conditional_t<kHasSteps<kNorm, kHeads>, BiasedWeights<Head::kDtype, Head::kElements>,
                                       Weights<Head::kDtype, Head::kElements>>;

template <Float kDtype, int kElements>
__device__ __forceinline__ void read_weights(BiasedWeights<kDtype, kElements> (&weights)[2], const NormWeight& weight,
                                             float bias, const LaneVectors& lane, int64_t begin) {
  Weights<kDtype, kElements> read[2];
  read_weights(read, weight, bias, lane, begin);
#pragma unroll
  for (int half = 0; half < 2; ++half) weights[half] = BiasedWeights<kDtype, kElements>::of(read[half]);
}

// Processes the heads of a group of lanes, token by token. The caches have the flash layout.
template <HeadNorm kNorm, class Head, Float kTable, int kHeads>
__device__ __forceinline__ void process_heads(const HeadGroups& groups, const QkNormRopeCacheParams& p,
                                              uint32_t block) {
  constexpr int kBytes = static_cast<int>(num_bytes(Head::kDtype));
  HeadThread thread = HeadThread::of(groups, block, Head::kElements);
  if (kNorm == HeadNorm::kNone && !thread.is_active) return;
  const TokenPart& part = thread.part;
  const HeadSide& side = groups.side(part);
  const uint32_t first_head = part.index * kHeads;
  const auto count = static_cast<int>(min(uint32_t{kHeads}, side.num_heads - first_head));
  const char* source = side.source.head(part.token, first_head) + thread.vectors.dims[0] * kBytes;
  const int half_bytes = (thread.vectors.dims[1] - thread.vectors.dims[0]) * kBytes;
  FlashWriter<Head, kHeads> writer(groups, p.key.out, part, count, thread.vectors);
  HeldWeights<kNorm, Head, kHeads> weights[2];
  if (kNorm == HeadNorm::kHeads && !part.is_value())
    read_weights(weights, side.weight, groups.norm.weight_bias, thread.vectors, 0);
  // With one head, the load of the scale is issued early.
  const float first_scale = kHeads == 1 ? side.scale_of(first_head) : 1.0f;

  bool has_token = thread.is_active;
  const uint32_t num_steps = kHasSteps<kNorm, kHeads> ? groups.num_steps : 1;
  for (uint32_t step = 0;;) {
    const PrefetchedIndex position_index = groups.position(part), slot_index = groups.slot(part);
    Head heads[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const char* head = source + (h < count ? h : 0) * side.source.stride_head_bytes;
      heads[h].read(head, head + half_bytes);
    }
    const int64_t position = position_index.value();
    thread.is_active = has_token;
    thread.check_position(groups, p.rope, position);
    norm_and_rotate<kNorm, kTable>(groups, p.rope, thread, position, weights, heads);
    if (thread.is_active) {
      writer.write(part, slot_index.value(), heads,
                   [&](int h) { return kHeads == 1 ? first_scale : side.scale_of(first_head + (h < count ? h : 0)); });
    }
    if (++step == num_steps) return;
    if (thread.advance(groups)) {
      source += side.source.stride_token_bytes;
      writer.advance();
    } else {
      has_token = false;
    }
  }
}

}  // namespace multikv::gpu
