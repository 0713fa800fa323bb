#include <algorithm>

#include "cuda/norm_rope/head_kernel.cuh"
#include "cuda/norm_rope/launch_heads.h"

namespace multikv::gpu {
namespace {

constexpr int kRowHeads = 2;  // the heads of a group of lanes, if all heads of a token are normed together

// Numbers of heads per multiprocessor, those of all tokens counted together. A group of lanes has one head instead of
// two for up to kFewCopiedHeads heads that are only rotated and copied, and for up to kFewHeads heads that are normed
// or quantised. For up to kFewestHeads heads that are normed, lanes have vectors of 8 bytes instead of 16.
constexpr int kFewCopiedHeads = 32, kFewHeads = 100, kFewestHeads = 4;

// The largest head whose vectors of 8 bytes a group of 32 lanes holds, in elements of 16 bits.
constexpr int kMaxNarrowHead = 2 * 32 * (kVectorBytes / 2) / 2;

// A group of lanes has up to kMaxSteps tokens, if kStepBlocks thread blocks per multiprocessor are left.
constexpr int kMaxSteps = 2, kStepBlocks = 4;

// The minimum number of resident thread blocks per multiprocessor. Many threads hide the latency of loads. With few
// tokens, few thread blocks are resident in any case.
template <HeadNorm kNorm, int kHeads>
constexpr int kHeadBlocks = kHeads == 1 ? 4 : (kNorm == HeadNorm::kNone ? 6 : 5);

template <HeadNorm kNorm, class Head, Float kTable, int kHeads>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, (kHeadBlocks<kNorm, kHeads>))
    head_kernel(const MULTIKV_GRID_CONSTANT HeadGroups groups, const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p) {
  process_heads<kNorm, Head, kTable, kHeads>(groups, p, blockIdx.x);
}

template <Float kDtype, Float kTable>
__global__ void MULTIKV_LAUNCH_BOUNDS(kMaxRowThreads, 2)
    head_row_kernel(const MULTIKV_GRID_CONSTANT HeadGroups groups,
                    const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p) {
  process_heads<HeadNorm::kRows, HeadVectors<kDtype, kVectorBytes>, kTable, kRowHeads>(groups, p, blockIdx.x);
}

template <HeadNorm kNorm, class Head, Float kTable, int kHeads>
void launch_kernel(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context) {
  constexpr int kBytes = static_cast<int>(sizeof(typename Head::Vector));
  HeadGroups groups = HeadGroups::of(p, kHeads, kBytes, p.value.data != nullptr);
  groups.only_rotated = only_rotated;
  if (kHasSteps<kNorm, kHeads>) groups.take_steps(kMaxSteps, kStepBlocks * context.num_multiprocessors);
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(groups.num_parts, groups.per_block));
  head_kernel<kNorm, Head, kTable, kHeads><<<blocks, kThreads, 0, context.stream>>>(groups, p);
}

}  // namespace

// A group of lanes has two heads of a token, which share cosines, sines and weights. But with few tokens, one head for
// each group, and few elements for each lane, give the shortest chain of dependent instructions.
void launch_heads(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context) {
  const bool is_normed = p.order != NormOrder::kNone;
  const bool are_copied = !is_normed && is_float(p.codec().element) && !p.quantises_queries();
  const int64_t heads = p.slots.num_tokens * (p.query.num_heads + 2 * p.key.num_heads);
  const bool are_few = heads <= (are_copied ? kFewCopiedHeads : kFewHeads) * context.num_multiprocessors;
  const bool are_fewest = heads <= kFewestHeads * context.num_multiprocessors && p.head_size <= kMaxNarrowHead;
  with_dtypes(p, [&]<Float kDtype, Float kTable>() {
    using Head = HeadVectors<kDtype, kVectorBytes>;
    if (!is_normed) {
      if (are_few) launch_kernel<HeadNorm::kNone, Head, kTable, 1>(p, only_rotated, context);
      else launch_kernel<HeadNorm::kNone, Head, kTable, 2>(p, only_rotated, context);
      return;
    }
    if constexpr (kDtype != Float::kFloat32) {
      using Narrow = HeadVectors<kDtype, kVectorBytes / 2>;
      if (are_fewest) return launch_kernel<HeadNorm::kHeads, Narrow, kTable, 1>(p, only_rotated, context);
    }
    if (are_few) launch_kernel<HeadNorm::kHeads, Head, kTable, 1>(p, only_rotated, context);
    else launch_kernel<HeadNorm::kHeads, Head, kTable, 2>(p, only_rotated, context);
  });
}

bool launch_head_rows(const QkNormRopeCacheParams& p, const Context& context) {
  HeadGroups groups = HeadGroups::of(p, kRowHeads, kVectorBytes, true);
  groups.per_block = static_cast<int>(groups.parts.per_token.value);
  const int64_t threads = ceil_div<int64_t>(static_cast<int64_t>(groups.per_block) << groups.lane_bits, 32) * 32;
  const bool is_power_of_two = (p.head_size & (p.head_size - 1)) == 0;
  if (!is_power_of_two || threads > kMaxRowThreads || std::max(p.query.num_heads, p.key.num_heads) > kMaxRowHeads)
    return false;
  with_dtypes(p, [&]<Float kDtype, Float kTable>() {
    head_row_kernel<kDtype, kTable>
        <<<static_cast<unsigned>(groups.num_tokens), static_cast<unsigned>(threads), 0, context.stream>>>(groups, p);
  });
  return true;
}

}  // namespace multikv::gpu
