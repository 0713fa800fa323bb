#include "frontend/ops/swap_mapping.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <utility>

namespace multikv {

namespace {

// A row of the mapping.
template <class Id>
struct Pair {
  Id src, dst;
};
template <class Id>
using Pairs = std::vector<Pair<Id>>;

std::string text(int64_t number) { return std::to_string(number); }

// Rows of the mapping as the caller keeps them.
struct MappingRows {
  const int64_t* data;
  int64_t stride, size;

  Pair<int64_t> row(int64_t i) const { return {data[i * stride], data[i * stride + 1]}; }
  // The first row from `begin` on of which this is true; there is one, unless the caller has changed it meanwhile.
  template <class Condition>
  int64_t find(Condition condition, int64_t begin = 0) const {
    while (begin < size && !condition(row(begin))) ++begin;
    return begin;
  }
};

[[noreturn]] void fail_block(const Call& call, const std::vector<SwapSides>& layers, int64_t i,
                             const Pair<int64_t>& pair) {
  for (const bool is_dst : {false, true}) {
    const int64_t block = is_dst ? pair.dst : pair.src;
    for (const SwapSides& layer : layers) {
      const SwapSide& side = is_dst ? layer.dst : layer.src;
      if (block >= 0 && block < side.num_blocks) continue;
      call.fail_index("block_mapping", join({text(i), ", ", is_dst ? "1" : "0"}),
                      join({"a block of ", side.text(), " from 0 to ", text(side.num_blocks - 1)}), block);
    }
  }
  std::abort();  // never: it is outside one of them
}

// Stable, by one of the two, which is below `end`: least significant digits first, in as few passes as digits of
// kMaxBits allow.
template <auto kKey, class Id>
void sort_by(Pairs<Id>& pairs, uint64_t end) {
  constexpr int kMaxBits = 11;
  if (pairs.size() < 64) {
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const Pair<Id>& a, const Pair<Id>& b) { return a.*kKey < b.*kKey; });
    return;
  }
  static thread_local Pairs<Id> kept;
  Pairs<Id>& other = kept;  // asked for once: each time costs a call
  other.resize(pairs.size());
  const int width = std::bit_width(end - 1), passes = (width + kMaxBits - 1) / kMaxBits;
  const int bits = passes == 0 ? 0 : (width + passes - 1) / passes;
  const Id mask = (Id{1} << bits) - 1;
  size_t begins[1 << kMaxBits];
  for (int shift = 0; shift < width; shift += bits) {
    std::fill_n(begins, mask + 1, 0);
    const auto digit = [&](const Pair<Id>& pair) { return (pair.*kKey >> shift) & mask; };
    for (const Pair<Id>& pair : pairs) ++begins[digit(pair)];
    size_t begin = 0;
    for (Id i = 0; i <= mask; ++i) begin += std::exchange(begins[i], begin);
    Pair<Id>* const to = other.data();
    for (const Pair<Id>& pair : pairs) to[begins[digit(pair)]++] = pair;
    pairs.swap(other);
  }
}

// Blocks of all pairs in memory, by address.
struct Interval {
  uint64_t begin;
  int64_t layer, pair;
};

std::vector<Interval> intervals(const std::vector<SwapSides>& layers, SwapSide SwapSides::* side,
                                const Pairs<uint64_t>& pairs, uint64_t Pair<uint64_t>::* block, int64_t block_bytes) {
  std::vector<Interval> all;
  all.reserve(layers.size() * pairs.size());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      const uint64_t begin = (layers[layer].*side).address + pairs[i].*block * block_bytes;
      all.push_back({begin, static_cast<int64_t>(layer), static_cast<int64_t>(i)});
    }
  }
  const auto by_address = [](const Interval& a, const Interval& b) { return a.begin < b.begin; };
  if (!std::is_sorted(all.begin(), all.end(), by_address)) std::stable_sort(all.begin(), all.end(), by_address);
  return all;
}

// Nothing is written twice, and nothing that is read is written. Of all layers against all.
void check_everywhere(const Call& call, const std::vector<SwapSides>& layers, const Pairs<uint64_t>& by_src,
                      const Pairs<uint64_t>& by_dst, uint64_t block_bytes, const MappingRows& rows) {
  const auto writes = intervals(layers, &SwapSides::dst, by_dst, &Pair<uint64_t>::dst, block_bytes);
  const auto number_of = [&](const Pair<uint64_t>& pair) {
    const auto src = static_cast<int64_t>(pair.src), dst = static_cast<int64_t>(pair.dst);
    return text(rows.find([&](const Pair<int64_t>& row) { return row.src == src && row.dst == dst; }));
  };
  const auto block_text = [&](const Interval& write) {
    return join({"block ", text(by_dst[write.pair].dst), " of ", layers[write.layer].dst.text()});
  };
  for (size_t i = 1; i < writes.size(); ++i) {
    const Interval &a = writes[i - 1], &b = writes[i];
    if (b.begin - a.begin >= block_bytes) continue;
    call.fail("dst", "tensors that do not overlap where they are written",
              join({block_text(a), " and ", block_text(b), " at one address"}));
  }
  const auto reads = intervals(layers, &SwapSides::src, by_src, &Pair<uint64_t>::src, block_bytes);
  auto write = writes.begin();  // the first that ends after the read begins
  for (const Interval& read : reads) {
    while (write != writes.end() && write->begin + block_bytes <= read.begin) ++write;
    if (write == writes.end()) return;
    if (write->begin >= read.begin + block_bytes) continue;
    const Pair<uint64_t>&reader = by_src[read.pair], &writer = by_dst[write->pair];
    call.fail(
        "block_mapping", "pairs that read nothing that is written",
        join({"pair ", number_of(reader), ", whose block ", text(reader.src), " of ", layers[read.layer].src.text(),
              " overlaps ", block_text(*write), ", that of pair ", number_of(writer)}));
  }
}

struct Extent {
  uint64_t begin, end;
  int64_t layer;
  bool is_dst;
};

// Which layers' tensors share memory, found from where they begin and end.
enum class Sharing : uint8_t { kNone, kWithinLayers, kAcrossLayers };
Sharing sharing_of(const std::vector<SwapSides>& layers, int64_t block_bytes) {
  static thread_local std::vector<Extent> extents;
  extents.clear();
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const bool is_dst : {false, true}) {
      const SwapSide& side = is_dst ? layers[i].dst : layers[i].src;
      const uint64_t end = side.address + static_cast<uint64_t>(side.num_blocks) * block_bytes;
      extents.push_back({side.address, end, static_cast<int64_t>(i), is_dst});
    }
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  // The furthest ends so far, of what is read and of what is written, and whose they are.
  Extent furthest[2] = {};
  bool is_shared = false, are_sources_shared = false;
  for (const Extent& extent : extents) {
    for (const Extent& before : furthest) {
      if (before.end <= extent.begin) continue;
      if (!before.is_dst && !extent.is_dst)
        are_sources_shared = true;  // which is allowed, but hides who else is read here
      else if (before.layer != extent.layer) return Sharing::kAcrossLayers;
      else is_shared = true;
    }
    Extent& of_kind = furthest[extent.is_dst];
    if (extent.end > of_kind.end) of_kind = extent;
  }
  if (!is_shared) return Sharing::kNone;
  return are_sources_shared ? Sharing::kAcrossLayers : Sharing::kWithinLayers;
}

template <class Id>
void check_overlaps(const Call& call, const std::vector<SwapSides>& layers, const Pairs<Id>& sorted, uint64_t src_end,
                    int64_t block_bytes, const MappingRows& rows) {
  const Sharing sharing = sharing_of(layers, block_bytes);
  if (sharing == Sharing::kNone) return;
  Pairs<uint64_t> by_dst;
  by_dst.reserve(sorted.size());
  for (const Pair<Id>& pair : sorted) by_dst.push_back({pair.src, pair.dst});
  Pairs<uint64_t> by_src = by_dst;
  sort_by<&Pair<uint64_t>::src>(by_src, src_end);
  if (sharing == Sharing::kAcrossLayers) return check_everywhere(call, layers, by_src, by_dst, block_bytes, rows);
  // Each layer by itself; those whose tensors lie alike need no second look.
  uint64_t checked = layers[0].src.address - layers[0].dst.address + 1;
  for (const SwapSides& layer : layers) {
    const uint64_t distance = layer.src.address - layer.dst.address;
    if (distance != checked) check_everywhere(call, {layer}, by_src, by_dst, block_bytes, rows);
    checked = distance;
  }
}

// `Id` holds the number of every block, and one more. Those of 32 bits are sorted in half the time.
template <class Id>
SwapRuns find_runs(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes, const MappingRows& rows,
                   uint64_t src_blocks, uint64_t dst_blocks) {
  static thread_local Pairs<Id> kept_pairs;
  Pairs<Id>& pairs = kept_pairs;  // asked for once: each time costs a call
  pairs.resize(rows.size);
  bool is_sorted = true;
  uint64_t last_dst = 0, src_end = 0, dst_end = 0;
  for (int64_t i = 0; i < rows.size; ++i) {
    const Pair<int64_t> row = rows.row(i);
    const auto src = static_cast<uint64_t>(row.src), dst = static_cast<uint64_t>(row.dst);
    if (src >= src_blocks || dst >= dst_blocks) fail_block(call, layers, i, row);
    pairs[i] = {static_cast<Id>(src), static_cast<Id>(dst)};
    is_sorted &= dst >= last_dst;
    last_dst = dst;
    src_end = std::max(src_end, src + 1);
    dst_end = std::max(dst_end, dst + 1);
  }
  if (!is_sorted) sort_by<&Pair<Id>::dst>(pairs, dst_end);

  static thread_local std::vector<SwapRun> kept_runs;  // lives until launch() returns, which is before the next call
  std::vector<SwapRun>& runs = kept_runs;
  if (runs.size() < pairs.size()) runs.resize(pairs.size());
  SwapRun* end = runs.data();
  int64_t longest = 1;
  for (int64_t i = 0; i < rows.size; ++i) {
    const Pair<Id> pair = pairs[i];
    if (i > 0) {
      const Pair<Id> last = pairs[i - 1];
      if (pair.dst == last.dst) {
        const auto has_it = [&](const Pair<int64_t>& row) { return static_cast<Id>(row.dst) == pair.dst; };
        const int64_t first = rows.find(has_it), second = rows.find(has_it, first + 1);
        call.fail("block_mapping", "blocks of dst that differ",
                  join({"block ", text(pair.dst), " in pairs ", text(first), " and ", text(second)}));
      }
      if (pair.src == last.src + Id{1} && pair.dst == last.dst + Id{1}) {
        longest = std::max(longest, ++end[-1].num_blocks);
        continue;
      }
    }
    *end++ = {static_cast<int64_t>(pair.src), static_cast<int64_t>(pair.dst), 1, i};
  }
  check_overlaps(call, layers, pairs, src_end, block_bytes, rows);
  return {runs.data(), end - runs.data(), longest, static_cast<int64_t>(src_end), static_cast<int64_t>(dst_end)};
}

}  // namespace

std::string SwapSide::text() const {
  return index < 0 ? std::string(name) : join({name, "[", std::to_string(index), "]"});
}

SwapRuns make_swap_runs(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                        const Tensor& block_mapping) {
  const MappingRows rows{static_cast<const int64_t*>(call.data("block_mapping", block_mapping)),
                         block_mapping.stride(0), block_mapping.size(0)};
  uint64_t src_blocks = std::numeric_limits<int64_t>::max(), dst_blocks = src_blocks;
  for (const SwapSides& layer : layers) {
    src_blocks = std::min(src_blocks, static_cast<uint64_t>(layer.src.num_blocks));
    dst_blocks = std::min(dst_blocks, static_cast<uint64_t>(layer.dst.num_blocks));
  }
  const bool is_small = std::max(src_blocks, dst_blocks) <= std::numeric_limits<uint32_t>::max();
  const auto find = is_small ? find_runs<uint32_t> : find_runs<uint64_t>;
  return find(call, layers, block_bytes, rows, src_blocks, dst_blocks);
}

}  // namespace multikv
