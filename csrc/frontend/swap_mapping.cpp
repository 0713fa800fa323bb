#include "swap_mapping.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <utility>

namespace multikv {

namespace {

using Pairs = std::vector<SwapPair>;

std::string text(int64_t number) { return std::to_string(number); }

// Rows of the mapping as the caller keeps them.
struct MappingRows {
  const int64_t* data;
  int64_t stride, size;

  const int64_t* row(int64_t i) const { return data + i * stride; }
  // The first row from `begin` on with this block in this column.
  int64_t find(int column, int64_t block, int64_t begin = 0) const {
    while (row(begin)[column] != block) ++begin;
    return begin;
  }
  int64_t find(const SwapPair& pair) const {
    int64_t i = 0;
    while (row(i)[0] != pair.src || row(i)[1] != pair.dst) ++i;
    return i;
  }
};

[[noreturn]] void fail_block(const Call& call, const std::vector<SwapSides>& layers, const MappingRows& rows, int64_t i) {
  for (int column = 0; column < 2; ++column) {
    const int64_t block = rows.row(i)[column];
    for (const SwapSides& layer : layers) {
      const SwapSide& side = column == 0 ? layer.src : layer.dst;
      if (block >= 0 && block < side.num_blocks) continue;
      call.fail_index("block_mapping", text(i) + ", " + text(column),
                      join({"a block of ", side.text(), " from 0 to ", text(side.num_blocks - 1)}), block);
    }
  }
  std::abort();  // never: the caller has found it outside one of them
}

// Stable, by one of the two, which are not negative: least significant digits first, in as few passes as digits of kMaxBits allow.
template <int64_t SwapPair::*kKey>
void sort_by(Pairs& pairs, int64_t largest) {
  constexpr int kMaxBits = 11;
  if (pairs.size() < 64) {
    std::stable_sort(pairs.begin(), pairs.end(), [](const SwapPair& a, const SwapPair& b) { return a.*kKey < b.*kKey; });
    return;
  }
  static thread_local Pairs kept;
  Pairs& other = kept;  // asked for once: each time costs a call
  other.resize(pairs.size());
  const int width = std::bit_width(static_cast<uint64_t>(largest)), passes = (width + kMaxBits - 1) / kMaxBits;
  const int bits = passes == 0 ? 0 : (width + passes - 1) / passes;
  size_t ends[1 << kMaxBits];
  for (int shift = 0; shift < width; shift += bits) {
    std::fill_n(ends, size_t{1} << bits, 0);
    const auto digit = [&](const SwapPair& pair) { return (pair.*kKey >> shift) & ((int64_t{1} << bits) - 1); };
    for (const SwapPair& pair : pairs) ++ends[digit(pair)];
    size_t end = 0;
    for (size_t i = 0; i < size_t{1} << bits; ++i) end += std::exchange(ends[i], end);
    SwapPair* to = other.data();
    for (const SwapPair& pair : pairs) to[ends[digit(pair)]++] = pair;
    pairs.swap(other);
  }
}

// Blocks of all pairs in memory, by address.
struct Interval {
  uint64_t begin;
  int64_t layer, pair;
};

std::vector<Interval> intervals(const std::vector<SwapSides>& layers, SwapSide SwapSides::*side, const Pairs& pairs,
                                int64_t SwapPair::*block, int64_t block_bytes) {
  std::vector<Interval> all;
  all.reserve(layers.size() * pairs.size());
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      const uint64_t begin = (layers[layer].*side).address + static_cast<uint64_t>(pairs[i].*block) * block_bytes;
      all.push_back({begin, static_cast<int64_t>(layer), static_cast<int64_t>(i)});
    }
  }
  const auto by_address = [](const Interval& a, const Interval& b) { return a.begin < b.begin; };
  if (!std::is_sorted(all.begin(), all.end(), by_address)) std::stable_sort(all.begin(), all.end(), by_address);
  return all;
}

// Nothing is written twice, and nothing that is read is written. Of all layers against all.
void check_everywhere(const Call& call, const std::vector<SwapSides>& layers, const Pairs& by_src, const Pairs& by_dst,
                      uint64_t block_bytes, const MappingRows& rows) {
  const auto writes = intervals(layers, &SwapSides::dst, by_dst, &SwapPair::dst, block_bytes);
  const auto block_text = [&](const Interval& write) {
    return join({"block ", text(by_dst[write.pair].dst), " of ", layers[write.layer].dst.text()});
  };
  for (size_t i = 1; i < writes.size(); ++i) {
    const Interval &a = writes[i - 1], &b = writes[i];
    if (b.begin - a.begin >= block_bytes) continue;
    call.fail("dst", "tensors that do not overlap where they are written",
              join({block_text(a), " and ", block_text(b), " at one address"}));
  }
  const auto reads = intervals(layers, &SwapSides::src, by_src, &SwapPair::src, block_bytes);
  auto write = writes.begin();  // the first that ends after the read begins
  for (const Interval& read : reads) {
    while (write != writes.end() && write->begin + block_bytes <= read.begin) ++write;
    if (write == writes.end()) return;
    if (write->begin >= read.begin + block_bytes) continue;
    const SwapPair &reader = by_src[read.pair], &writer = by_dst[write->pair];
    call.fail("block_mapping", "pairs that read nothing that is written",
              join({"pair ", text(rows.find(reader)), ", whose block ", text(reader.src), " of ",
                    layers[read.layer].src.text(), " overlaps ", block_text(*write), ", that of pair ",
                    text(rows.find(writer))}));
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
      if (!before.is_dst && !extent.is_dst) are_sources_shared = true;  // which is allowed, but hides who else is read here
      else if (before.layer != extent.layer) return Sharing::kAcrossLayers;
      else is_shared = true;
    }
    Extent& of_kind = furthest[extent.is_dst];
    if (extent.end > of_kind.end) of_kind = extent;
  }
  if (!is_shared) return Sharing::kNone;
  return are_sources_shared ? Sharing::kAcrossLayers : Sharing::kWithinLayers;
}

void check_overlaps(const Call& call, const std::vector<SwapSides>& layers, Sharing sharing, const Pairs& by_dst,
                    int64_t largest_src, int64_t block_bytes, const MappingRows& rows) {
  if (sharing == Sharing::kNone) return;
  Pairs by_src = by_dst;
  sort_by<&SwapPair::src>(by_src, largest_src);
  if (sharing == Sharing::kAcrossLayers) return check_everywhere(call, layers, by_src, by_dst, block_bytes, rows);
  // Each layer by itself; those whose tensors lie alike need no second look.
  uint64_t checked = layers[0].src.address - layers[0].dst.address + 1;
  for (const SwapSides& layer : layers) {
    const uint64_t distance = layer.src.address - layer.dst.address;
    if (distance != checked) check_everywhere(call, {layer}, by_src, by_dst, block_bytes, rows);
    checked = distance;
  }
}

// Joins neighbours that come one after the other.
class Runs {
 public:
  Runs(int64_t num_pairs, uint64_t dst_blocks) : shift_(std::max(static_cast<int>(std::bit_width(dst_blocks - 1)) - kBits, 0)) {
    static thread_local std::vector<SwapRun> kept;  // lives until launch() returns, which is before the next call
    begin_ = end_ = room(kept, num_pairs);
  }
  // Pair i. True: it continues the last run.
  bool add(int64_t i, int64_t src, int64_t dst) {
    const int64_t next_dst = next_.dst;
    const bool continues = src == next_.src && dst == next_dst;
    next_ = {src + 1, dst + 1};
    if (continues) {
      longest_ = std::max(longest_, ++end_[-1].num_blocks);
    } else {
      is_sorted_ &= dst >= next_dst;
      ++buckets_[dst >> shift_];
      *end_++ = {src, dst, 1, i};
    }
    src_end_ = std::max(src_end_, src + 1);
    dst_end_ = std::max(dst_end_, dst + 1);
    return continues;
  }
  // By the upper digits of dst: memory is written faster if that is about in order.
  void sort_roughly() {
    if (is_sorted_) return;
    static thread_local std::vector<SwapRun> kept;  // as the other
    SwapRun* const sorted = room(kept, count());
    int64_t end = 0;
    for (int64_t& bucket : buckets_) end += std::exchange(bucket, end);
    for (const SwapRun* run = begin_; run < end_; ++run) {
      const int64_t place = buckets_[run->dst_block >> shift_]++;
      sorted[place] = {run->src_block, run->dst_block, run->num_blocks, place};
    }
    end_ = sorted + count();
    begin_ = sorted;
    if (longest_ == 1) return;
    int64_t begin = 0;
    for (SwapRun* run = begin_; run < end_; begin += (run++)->num_blocks) run->begin = begin;
  }
  int64_t count() const { return end_ - begin_; }
  SwapRuns all() const { return {begin_, count(), longest_, src_end_, dst_end_}; }

 private:
  static SwapRun* room(std::vector<SwapRun>& kept, int64_t count) {
    if (static_cast<int64_t>(kept.size()) < count) kept.resize(count);
    return kept.data();
  }

  static constexpr int kBits = 8;
  int shift_;
  int64_t buckets_[1 << kBits] = {};
  SwapRun *begin_, *end_;
  SwapPair next_ = {-1, -1};
  bool is_sorted_ = true;
  int64_t longest_ = 1, src_end_ = 0, dst_end_ = 0;
};

// The runs without sorting the pairs, which is all that most mappings need. False: sorting would join many of these runs, the
// mapping is not valid, or dst has too many blocks. A table says for each block of dst what was written to it by this call, so far.
bool find_runs_in_order(const MappingRows& rows, uint64_t src_blocks, uint64_t dst_blocks, Runs& runs) {
  constexpr uint64_t kMaxBlocks = 1 << 18;  // the table is then 2 MB, of each thread that swaps; of more, sorting is faster
  if (dst_blocks > kMaxBlocks || src_blocks > std::numeric_limits<uint32_t>::max()) return false;
  static thread_local struct {
    std::vector<uint64_t> entries;  // a call, and the block of src; one more on each side
    uint64_t num_pairs;             // of this thread's calls
    uint32_t call;
  } kept;
  auto& [entries, num_pairs, call] = kept;  // asked for once: each time costs a call
  num_pairs += rows.size;
  if (entries.size() < dst_blocks + 2) {
    constexpr uint64_t kPerPair = 16;  // blocks of a new table that a pair may cost: it grows with use, not in the first call
    if (dst_blocks > num_pairs * kPerPair) return false;
    entries.reserve(dst_blocks + 2);
    entries.resize(dst_blocks + 2);
  }
  if (++call == 0) {
    std::fill(entries.begin(), entries.end(), 0);
    call = 1;
  }
  const uint64_t tag = static_cast<uint64_t>(call) << 32;
  uint64_t* const table = entries.data() + 1;
  bool is_unique = true;
  int64_t separated = 0;  // neighbours that do not follow each other
  for (int64_t i = 0; i < rows.size; ++i) {
    const auto src = static_cast<uint64_t>(rows.row(i)[0]), dst = static_cast<uint64_t>(rows.row(i)[1]);
    if (src >= src_blocks || dst >= dst_blocks) return false;
    uint64_t* const at = table + dst;
    const bool after_its_last = at[-1] == tag + src - 1, after_its_next = at[1] == tag + src + 1;
    is_unique &= *at < tag;
    *at = tag + src;
    separated += after_its_last - runs.add(i, src, dst) + after_its_next;
  }
  if (!is_unique || separated * 8 > runs.count()) return false;
  runs.sort_roughly();
  return true;
}

}  // namespace

std::string SwapSide::text() const {
  return index < 0 ? std::string(name) : join({name, "[", std::to_string(index), "]"});
}

SwapRuns make_swap_runs(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                        const Tensor& block_mapping) {
  const MappingRows rows{static_cast<const int64_t*>(call.data("block_mapping", block_mapping)), block_mapping.stride(0),
                         block_mapping.size(0)};
  uint64_t src_blocks = std::numeric_limits<int64_t>::max(), dst_blocks = src_blocks;
  for (const SwapSides& layer : layers) {
    src_blocks = std::min(src_blocks, static_cast<uint64_t>(layer.src.num_blocks));
    dst_blocks = std::min(dst_blocks, static_cast<uint64_t>(layer.dst.num_blocks));
  }
  const Sharing sharing = sharing_of(layers, block_bytes);
  if (sharing == Sharing::kNone) {
    Runs runs(rows.size, dst_blocks);
    if (find_runs_in_order(rows, src_blocks, dst_blocks, runs)) return runs.all();
  }

  static thread_local Pairs kept;
  Pairs& pairs = kept;
  pairs.resize(rows.size);
  int64_t last = -1, largest_src = 0, largest_dst = 0;
  bool is_sorted = true;
  for (int64_t i = 0; i < rows.size; ++i) {
    const int64_t src = rows.row(i)[0], dst = rows.row(i)[1];
    if (static_cast<uint64_t>(src) >= src_blocks || static_cast<uint64_t>(dst) >= dst_blocks) fail_block(call, layers, rows, i);
    pairs[i] = {src, dst};
    is_sorted &= dst > last;
    last = dst;
    largest_src = std::max(largest_src, src);
    largest_dst = std::max(largest_dst, dst);
  }
  if (!is_sorted) sort_by<&SwapPair::dst>(pairs, largest_dst);

  Runs runs(rows.size, dst_blocks);
  for (int64_t i = 0; i < rows.size; ++i) {
    const SwapPair& pair = pairs[i];
    if (i > 0 && pair.dst == pairs[i - 1].dst) {
      const int64_t first = rows.find(1, pair.dst), second = rows.find(1, pair.dst, first + 1);
      call.fail("block_mapping", "blocks of dst that differ",
                join({"block ", text(pair.dst), " in pairs ", text(first), " and ", text(second)}));
    }
    runs.add(i, pair.src, pair.dst);
  }
  check_overlaps(call, layers, sharing, pairs, largest_src, block_bytes, rows);
  return runs.all();
}

}  // namespace multikv
