// The work of groups of lanes that share heads, as the host prepares it for a kernel.
#pragma once

#include <algorithm>

#include "cuda/norm_rope/head_vectors.cuh"
#include "cuda/norm_rope/token_parts.cuh"

namespace multikv::gpu {

// The heads of one kind: where they are read, what they are normed with, and where they are written.
struct HeadSide {
  TokenHeads source;
  NormWeight weight;
  uint32_t num_heads;
  Element element;         // of what is written
  char* to;                // query.out, or slot 0 of a cache
  int64_t to_token_bytes;  // the distance between tokens of query.out; 0 for a cache
  int64_t to_head_bytes;
  int64_t to_block_bytes, to_slot_bytes;  // for a cache of the flash layout
  const float* scale;                     // nullptr: 1
  int64_t scale_stride_head;

  static HeadSide of(const QkNormRopeCacheParams& p, HeadKind kind) {
    HeadSide side{};
    if (kind == HeadKind::kQuery) {
      const NormRopeHeads& query = p.query;
      side.source = query.source;
      side.weight = query.weight;
      side.num_heads = static_cast<uint32_t>(query.num_heads);
      side.element = p.query_element;
      side.to = query.out.data;
      side.to_token_bytes = query.out.stride_token_bytes;
      side.to_head_bytes = query.out.stride_head_bytes;
      if (p.quantises_queries()) side.scale = p.query_scale;
      return side;
    }
    const bool is_key = kind == HeadKind::kKey;
    const HeadCache& cache = is_key ? p.key_cache : p.value_cache;
    side.source = is_key ? p.key.source : p.value;
    if (is_key) side.weight = p.key.weight;
    side.num_heads = static_cast<uint32_t>(p.key.num_heads);
    side.element = cache.codec.element;
    side.to = cache.data;
    side.to_head_bytes = cache.stride_head_bytes;
    side.to_block_bytes = cache.stride_block_bytes;
    side.to_slot_bytes = cache.stride_row_bytes;
    if (!is_float(side.element)) side.scale = cache.scale;
    side.scale_stride_head = cache.scale_stride_head;
    return side;
  }
  __device__ __forceinline__ float scale_of(int64_t head) const {
    return scale == nullptr ? 1.0f : scale[head * scale_stride_head];
  }
};

// What a kernel needs of each token's position. Multimodal rotary embedding needs the rest of Rope, too.
struct HeadRope {
  bool is_on, is_neox, has_section;
  Indices positions;
  const char* table;
  int64_t stride_position_bytes, num_positions, num_pairs;

  static HeadRope of(const Rope& rope) {
    return {.is_on = rope.is_on,
            .is_neox = rope.is_neox,
            .has_section = rope.section.is_given,
            .positions = rope.positions,
            .table = rope.cos_sin_cache.data,
            .stride_position_bytes = rope.cos_sin_cache.stride_token_bytes,
            .num_positions = rope.num_positions,
            .num_pairs = rope.is_on ? rope.num_pairs() : 0};
  }
};

constexpr int kVectorBytes = 16;  // of the vectors that lanes hold; heads.cu also has lanes with half of it

// Groups of lanes, each with some heads of num_steps neighbouring tokens. All that a kernel reads for each head is
// here, side by side: every line of a kernel's arguments is a cache miss when the kernel starts.
struct HeadGroups {
  HeadLanes lanes;
  int lane_bits;  // lanes.count is 2^lane_bits
  int per_block;  // groups of a thread block
  TokenParts parts;
  uint32_t num_parts, num_tokens, num_steps;
  bool only_rotated;  // heads are rotated in place: vectors that are not rotated are not written
  NormOrder order;
  RmsNorm norm;
  HeadRope rope;
  Indices slots;
  Blocks blocks;
  int64_t head_size;
  HeadSide sides[3];  // indexed by HeadKind

  // Returns the groups for a kernel with thread blocks of kThreads threads. Each group has up to `heads` heads of one
  // token.
  static HeadGroups of(const QkNormRopeCacheParams& p, int heads, int vector_bytes, bool has_values) {
    HeadGroups groups{};
    groups.lanes = HeadLanes::of(p.rope, p.head_size, vector_bytes / static_cast<int>(num_bytes(p.dtype)));
    while (1 << groups.lane_bits < groups.lanes.count) ++groups.lane_bits;
    groups.per_block = kThreads >> groups.lane_bits;
    groups.parts = TokenParts::of(p, heads, has_values);
    groups.num_tokens = static_cast<uint32_t>(p.slots.num_tokens);
    groups.num_parts = static_cast<uint32_t>(groups.parts.count(groups.num_tokens));
    groups.num_steps = 1;
    groups.order = p.order;
    groups.norm = p.norm;
    groups.rope = HeadRope::of(p.rope);
    groups.slots = p.slots.mapping;
    groups.blocks = p.blocks();
    groups.head_size = p.head_size;
    for (const HeadKind kind : {HeadKind::kQuery, HeadKind::kKey, HeadKind::kValue})
      groups.sides[static_cast<int>(kind)] = HeadSide::of(p, kind);
    return groups;
  }
  // Sets num_steps, the tokens of a group, to the largest number up to max_steps with which there are still min_blocks
  // thread blocks or more. num_steps is at least 1.
  void take_steps(int64_t max_steps, int64_t min_blocks) {
    const int64_t steps = num_parts / (per_block * min_blocks);
    num_steps = static_cast<uint32_t>(std::clamp<int64_t>(steps, 1, max_steps));
    num_parts = static_cast<uint32_t>(parts.count(ceil_div(num_tokens, num_steps)));
  }
  __device__ __forceinline__ const HeadSide& side(const TokenPart& part) const {
    return sides[static_cast<int>(part.kind)];
  }
  __device__ __forceinline__ PrefetchedIndex position(const TokenPart& part) const {
    return rope.is_on ? PrefetchedIndex(rope.positions, part.token) : PrefetchedIndex();
  }
  // The index of the token's slot, which queries do not need.
  __device__ __forceinline__ PrefetchedIndex slot(const TokenPart& part) const {
    return !part.is_query() && slots.is_given() ? PrefetchedIndex(slots, part.token) : PrefetchedIndex();
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
    part.token *= groups.num_steps;
    const bool is_token = part.token < groups.num_tokens;  // the last run may go past the last token
    if (!is_token) part.token = 0;
    return {lane, is_group && is_token, false, part, LaneVectors(groups.lanes, lane, elements)};
  }
  // Goes to the next token if there is one. Returns whether it has.
  __device__ __forceinline__ bool advance(const HeadGroups& groups) {
    if (part.token + 1 >= groups.num_tokens) return false;
    ++part.token;
    return true;
  }
  // Sets is_active and is_rotated from the position of the token and the kind of the heads.
  __device__ __forceinline__ void check_position(const HeadGroups& groups, const Rope& rope, int64_t position) {
    const bool is_in_pairs = lane < groups.lanes.rotated;
    if (groups.only_rotated && !is_in_pairs) is_active = false;
    if (groups.rope.is_on) {
      is_active = is_active && static_cast<uint64_t>(position) < static_cast<uint64_t>(groups.rope.num_positions);
      if (groups.rope.has_section) is_active = is_active && has_other_positions(rope, part.token);
    }
    is_rotated = is_active && is_in_pairs && !part.is_value();
  }
};

}  // namespace multikv::gpu
