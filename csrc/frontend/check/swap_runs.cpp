#include "frontend/check/swap_runs.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "frontend/check/shapes.h"
#include "frontend/check/swap_overlaps.h"

namespace multikv {

namespace {

// The number of blocks of the smallest src tensor and of the smallest dst tensor, and the size of a block.
struct BlockLimits {
  uint64_t src, dst;
  int64_t block_bytes;
};

// What read_pairs() finds out about the pairs.
struct PairsRead {
  bool is_sorted;             // by dst
  uint64_t src_end, dst_end;  // the largest block + 1
};

[[noreturn]] void fail_block(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes, int64_t i,
                             const BlockPair<int64_t>& pair) {
  for (const bool is_dst : {false, true}) {
    const int64_t block = is_dst ? pair.dst : pair.src;
    for (const SwapSides& layer : layers) {
      const SwapSide& side = is_dst ? layer.dst : layer.src;
      if (block >= 0 && block < side.num_blocks) continue;
      call.fail_index(
          "block_mapping", join({text(i), is_dst ? ", 1" : ", 0"}),
          range_text(join({"block of ", side.text()}), side.num_blocks, join({" of ", text(block_bytes), " bytes"})),
          block);
    }
  }
  std::abort();  // unreachable: the caller found a block outside one of the sides
}

template <class Id>
PairsRead read_pairs(const Call& call, const std::vector<SwapSides>& layers, const MappingRows& rows,
                     const BlockLimits& limits, BlockPairs<Id>& pairs) {
  pairs.resize(rows.size);
  bool is_sorted = true;
  uint64_t last_dst = 0, src_end = 0, dst_end = 0;
  for (int64_t i = 0; i < rows.size; ++i) {
    const BlockPair<int64_t> row = rows.row(i);
    const auto src = static_cast<uint64_t>(row.src), dst = static_cast<uint64_t>(row.dst);
    if (src >= limits.src || dst >= limits.dst) fail_block(call, layers, limits.block_bytes, i, row);
    pairs[i] = {static_cast<Id>(src), static_cast<Id>(dst)};
    is_sorted &= dst >= last_dst;
    last_dst = dst;
    src_end = std::max(src_end, src + 1);
    dst_end = std::max(dst_end, dst + 1);
  }
  return {is_sorted, src_end, dst_end};
}

template <class Id>
[[noreturn]] void fail_duplicate(const Call& call, const MappingRows& rows, Id dst) {
  const auto has_dst = [&](const BlockPair<int64_t>& row) { return static_cast<Id>(row.dst) == dst; };
  const int64_t first = rows.find(has_dst), second = rows.find(has_dst, first + 1);
  call.fail("block_mapping", "distinct destination blocks",
            join({"duplicate destination block ", text(dst), " (pairs ", text(first), " and ", text(second), ")"}));
}

// Joins pairs of neighbouring blocks to runs. The pairs must be sorted by dst. Fails if two of them have the same dst.
template <class Id>
SwapRuns join_pairs(const Call& call, const MappingRows& rows, const BlockPairs<Id>& pairs) {
  static thread_local std::vector<SwapRun> kept;
  std::vector<SwapRun>& runs = kept;  // a reference, because every access to a thread_local variable is a function call
  if (runs.size() < pairs.size()) runs.resize(pairs.size());
  SwapRun* end = runs.data();
  int64_t longest = 1;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const BlockPair<Id> pair = pairs[i];
    if (i > 0) {
      const BlockPair<Id> last = pairs[i - 1];
      if (pair.dst == last.dst) fail_duplicate(call, rows, pair.dst);
      if (pair.src == last.src + Id{1} && pair.dst == last.dst + Id{1}) {
        longest = std::max(longest, ++end[-1].num_blocks);
        continue;
      }
    }
    *end++ = {static_cast<int64_t>(pair.src), static_cast<int64_t>(pair.dst), 1, static_cast<int64_t>(i)};
  }
  return {runs.data(), end - runs.data(), longest, 0, 0};
}

// `Id` must represent every valid block, and every valid block + 1.
template <class Id>
SwapRuns find_runs(const Call& call, const std::vector<SwapSides>& layers, const MappingRows& rows,
                   const BlockLimits& limits) {
  static thread_local BlockPairs<Id> kept;
  BlockPairs<Id>& pairs = kept;  // a reference, because every access to a thread_local variable is a function call
  const PairsRead read = read_pairs(call, layers, rows, limits, pairs);
  if (!read.is_sorted) sort_by<&BlockPair<Id>::dst>(pairs, read.dst_end);
  SwapRuns runs = join_pairs(call, rows, pairs);
  check_overlaps(call, layers, limits.block_bytes, pairs, rows);
  runs.src_end = static_cast<int64_t>(read.src_end);
  runs.dst_end = static_cast<int64_t>(read.dst_end);
  return runs;
}

}  // namespace

SwapRuns find_swap_runs(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                        const Tensor& block_mapping) {
  const auto* data = reinterpret_cast<const int64_t*>(multikv::data(call, "block_mapping", block_mapping));
  const MappingRows rows{data, block_mapping.stride(0), block_mapping.size(0)};
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  BlockLimits limits{kMost, kMost, block_bytes};
  for (const SwapSides& layer : layers) {
    limits.src = std::min(limits.src, static_cast<uint64_t>(layer.src.num_blocks));
    limits.dst = std::min(limits.dst, static_cast<uint64_t>(layer.dst.num_blocks));
  }
  const bool is_small = std::max(limits.src, limits.dst) <= std::numeric_limits<uint32_t>::max();
  const auto find = is_small ? find_runs<uint32_t> : find_runs<uint64_t>;
  return find(call, layers, rows, limits);
}

}  // namespace multikv
