#include <type_traits>

#include "cuda/cache/packed_values.cuh"
#include "cuda/norm_rope/head_kernel.cuh"
#include "cuda/norm_rope/head_output.cuh"
#include "cuda/norm_rope/launch_heads.h"

namespace multikv::gpu {
namespace {

constexpr int kFewTokens = 16;    // the number of tokens up to which values are written element by element
constexpr int kValueTokens = 64;  // the number of tokens whose values a thread block transposes
constexpr int kRunBits = 4;       // 16 neighbouring tokens write the same part of their keys side by side

// The slot of a token whose position is in the table, else -1.
__device__ __forceinline__ int64_t slot_of(const QkNormRopeCacheParams& p, int64_t token) {
  const int64_t position = p.rope.is_on ? p.rope.positions.at(token) : 0;
  return has_positions(p.rope, token, position) ? p.slots.mapping.at(token) : -1;
}

// Processes the head of a group of lanes.
template <Float kDtype, Float kTable>
__device__ __forceinline__ void process_head(const HeadGroups& groups, const QkNormRopeCacheParams& p, uint32_t block) {
  using Head = HeadVectors<kDtype, kVectorBytes>;
  HeadThread thread = HeadThread::of(groups, block, Head::kElements);
  const TokenPart& part = thread.part;
  const HeadSide& side = groups.side(part);
  const PrefetchedIndex position_index = groups.position(part), slot_index = groups.slot(part);
  Head head[1];
  const char* source = side.source.head(part.token, part.index);
  head[0].read(source + thread.vectors.dims[0] * num_bytes(kDtype),
               source + thread.vectors.dims[1] * num_bytes(kDtype));
  const float scale = side.scale_of(part.index);
  typename Head::VectorWeights weights;
  if (!part.is_value()) read_weights(weights, side.weight, p.norm.weight_bias, thread.vectors, 0);
  const int64_t position = position_index.value();
  thread.check_position(groups, p.rope, position);
  norm_and_rotate<HeadNorm::kHeads, kTable>(groups, p.rope, thread, position, weights, head);
  if (!thread.is_active) return;
  const HeadWriter writer(p, part, slot_index.value());
  writer.template write<kDtype, Head::kElements>(part.index, thread.vectors.dims, thread.vectors.exists, scale,
                                                 head[0].vectors);
}

// Thread blocks process heads, and those from num_head_blocks on write the values of kValueTokens tokens of a head, if
// `groups` has no values.
template <Float kDtype, Float kTable, class Move, class Stored>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 6)
    packed_head_kernel(const MULTIKV_GRID_CONSTANT HeadGroups groups, unsigned num_head_blocks, Divisor heads,
                       const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p,
                       const MULTIKV_GRID_CONSTANT ReshapeAndCacheParams values) {
  if (blockIdx.x < num_head_blocks) return process_head<kDtype, kTable>(groups, p, blockIdx.x);
  const int64_t block = blockIdx.x - num_head_blocks;
  const auto chunk = static_cast<int64_t>(quotient_of(block, heads));
  const int64_t head = block - chunk * heads.signed_value();
  write_packed_values<Move, Stored, kValueTokens>(values, head, chunk * kValueTokens,
                                                  [&](int64_t token) { return slot_of(p, token); });
}

ReshapeAndCacheParams values_of(const QkNormRopeCacheParams& p) {
  ReshapeAndCacheParams values{};
  values.slots = p.slots;
  values.dtype = p.dtype;
  values.num_heads = p.key.num_heads;
  values.head_size = p.head_size;
  values.value.source = p.value;
  static_cast<PackedCache&>(values.value.cache) = p.value_cache;
  static_cast<PackedCache&>(values.key.cache) = p.key_cache;
  return values;
}

template <Float kDtype, Float kTable, class Move, class Stored>
void launch_kernel(const QkNormRopeCacheParams& p, const Context& context) {
  const bool are_few = p.slots.num_tokens <= kFewTokens;
  HeadGroups groups = HeadGroups::of(p, 1, kVectorBytes, are_few);
  groups.parts.run_bits = are_few ? 0 : kRunBits;
  groups.num_parts = static_cast<uint32_t>(groups.parts.count(p.slots.num_tokens));
  const auto head_blocks = static_cast<unsigned>(ceil_div<int64_t>(groups.num_parts, groups.per_block));
  const int64_t chunks = are_few ? 0 : ceil_div<int64_t>(p.slots.num_tokens, kValueTokens);
  const auto value_blocks = static_cast<unsigned>(chunks * p.key.num_heads);
  packed_head_kernel<kDtype, kTable, Move, Stored><<<head_blocks + value_blocks, kThreads, 0, context.stream>>>(
      groups, head_blocks, Divisor::of(p.key.num_heads), p, values_of(p));
}

}  // namespace

void launch_packed_heads(const QkNormRopeCacheParams& p, const Context& context) {
  with_dtypes(p, [&]<Float kDtype, Float kTable>() {
    using Word = std::conditional_t<num_bytes(kDtype) == 4, uint32_t, uint16_t>;
    if (p.codec().is_float()) launch_kernel<kDtype, kTable, Copy<16>, Word>(p, context);
    else launch_kernel<kDtype, kTable, Quantise<kDtype, 8>, uint8_t>(p, context);
  });
}

}  // namespace multikv::gpu
