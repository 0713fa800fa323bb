#include <algorithm>

#include "cuda/norm_rope/head_kernel.cuh"
#include "cuda/norm_rope/launch_heads.h"

namespace multikv::gpu {
namespace {

constexpr int kRowHeads = 2;   // the heads of a group of lanes, if all heads of a token are normed together
constexpr int kFewHeads = 32;  // the heads per multiprocessor up to which a group of lanes has one head

// The minimum number of resident thread blocks per multiprocessor. Many threads hide the latency of loads. With few
// tokens, few thread blocks are resident in any case.
template <HeadNorm kNorm, int kHeads>
constexpr int kHeadBlocks = kHeads == 1 ? 4 : (kNorm == HeadNorm::kNone ? 6 : 5);

template <HeadNorm kNorm, Float kDtype, Float kTable, int kHeads>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, (kHeadBlocks<kNorm, kHeads>))
    head_kernel(const MULTIKV_GRID_CONSTANT HeadGroups groups, const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p) {
  process_heads<kNorm, kDtype, kTable, kHeads, false>(groups, p, blockIdx.x);
}

template <Float kDtype, Float kTable>
__global__ void MULTIKV_LAUNCH_BOUNDS(kMaxRowThreads, 2)
    head_row_kernel(const MULTIKV_GRID_CONSTANT HeadGroups groups,
                    const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p) {
  process_heads<HeadNorm::kRows, kDtype, kTable, kRowHeads, false>(groups, p, blockIdx.x);
}

template <HeadNorm kNorm, Float kDtype, Float kTable, int kHeads>
void launch_kernel(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context) {
  HeadGroups groups = HeadGroups::of(p, kHeads, p.value.data != nullptr);
  groups.only_rotated = only_rotated;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(groups.num_parts, groups.per_block));
  head_kernel<kNorm, kDtype, kTable, kHeads><<<blocks, kThreads, 0, context.stream>>>(groups, p);
}

}  // namespace

// A group of lanes has two heads of a token, which share cosines, sines and weights. But with few tokens, one head for
// each group gives the shortest chain of dependent instructions.
void launch_heads(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context) {
  const int64_t heads = p.slots.num_tokens * (p.query.num_heads + 2 * p.key.num_heads);
  const bool are_few = heads <= kFewHeads * context.num_multiprocessors;
  with_dtypes(p, [&]<Float kDtype, Float kTable>() {
    const auto launch_norm = [&]<HeadNorm kNorm>() {
      if (are_few) launch_kernel<kNorm, kDtype, kTable, 1>(p, only_rotated, context);
      else launch_kernel<kNorm, kDtype, kTable, 2>(p, only_rotated, context);
    };
    if (p.order == NormOrder::kNone) launch_norm.template operator()<HeadNorm::kNone>();
    else launch_norm.template operator()<HeadNorm::kHeads>();
  });
}

bool launch_head_rows(const QkNormRopeCacheParams& p, const Context& context) {
  HeadGroups groups = HeadGroups::of(p, kRowHeads, true);
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
