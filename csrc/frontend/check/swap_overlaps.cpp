#include "frontend/check/swap_overlaps.h"

#include <algorithm>

namespace multikv {

namespace {

using Pairs = BlockPairs<uint64_t>;

// The memory of a block that pair `pair` reads or writes in layer `layer`.
struct BlockInMemory {
  uint64_t begin;  // the address of the first byte
  int64_t layer, pair;
};

// All copies of these layers: every pair in every layer. by_src and by_dst hold the same pairs, sorted by src and
// sorted by dst: the blocks that a layer reads, or writes, are then already in the order of their addresses.
struct Copies {
  const std::vector<SwapSides>& layers;
  uint64_t block_bytes;
  const Pairs &by_src, &by_dst;
  const MappingRows& rows;

  // "block 3 of src[1]"
  std::string read_text(const BlockInMemory& read) const {
    return join({"block ", text(by_src[read.pair].src), " of ", layers[read.layer].src.text()});
  }
  std::string written_text(const BlockInMemory& write) const {
    return join({"block ", text(by_dst[write.pair].dst), " of ", layers[write.layer].dst.text()});
  }
  // Returns " (pair 7)", where 7 is the row of block_mapping.
  std::string number_text(const BlockPair<uint64_t>& pair) const {
    const auto src = static_cast<int64_t>(pair.src), dst = static_cast<int64_t>(pair.dst);
    const auto is_pair = [&](const BlockPair<int64_t>& row) { return row.src == src && row.dst == dst; };
    return join({" (pair ", text(rows.find(is_pair)), ")"});
  }
};

// Returns the blocks that all pairs read, or write, in all layers, in the order of their addresses.
std::vector<BlockInMemory> blocks_by_address(const Copies& copies, SwapSide SwapSides::* side, const Pairs& pairs,
                                             uint64_t BlockPair<uint64_t>::* block) {
  std::vector<BlockInMemory> blocks;
  blocks.reserve(copies.layers.size() * pairs.size());
  for (size_t layer = 0; layer < copies.layers.size(); ++layer) {
    for (size_t i = 0; i < pairs.size(); ++i) {
      const uint64_t begin = (copies.layers[layer].*side).address + pairs[i].*block * copies.block_bytes;
      blocks.push_back({begin, static_cast<int64_t>(layer), static_cast<int64_t>(i)});
    }
  }
  const auto is_before = [](const BlockInMemory& a, const BlockInMemory& b) { return a.begin < b.begin; };
  if (!std::is_sorted(blocks.begin(), blocks.end(), is_before)) {
    std::stable_sort(blocks.begin(), blocks.end(), is_before);
  }
  return blocks;
}

void check_writes(const Call& call, const Copies& copies, const std::vector<BlockInMemory>& writes) {
  for (size_t i = 1; i < writes.size(); ++i) {
    if (writes[i].begin - writes[i - 1].begin >= copies.block_bytes) continue;
    call.fail("dst", "destination blocks that do not overlap",
              join({copies.written_text(writes[i - 1]), " overlapping ", copies.written_text(writes[i])}));
  }
}

void check_reads(const Call& call, const Copies& copies, const std::vector<BlockInMemory>& reads,
                 const std::vector<BlockInMemory>& writes) {
  auto write = writes.begin();  // the first write that ends after the read begins
  for (const BlockInMemory& read : reads) {
    while (write != writes.end() && write->begin + copies.block_bytes <= read.begin) ++write;
    if (write == writes.end()) return;
    if (write->begin >= read.begin + copies.block_bytes) continue;
    call.fail("block_mapping", "source blocks that do not overlap destination blocks",
              join({copies.read_text(read), copies.number_text(copies.by_src[read.pair]), " overlapping ",
                    copies.written_text(*write), copies.number_text(copies.by_dst[write->pair])}));
  }
}

// Fails if a block that is written overlaps another block that is read or written, in any of these layers.
void check_blocks(const Call& call, const Copies& copies) {
  const auto writes = blocks_by_address(copies, &SwapSides::dst, copies.by_dst, &BlockPair<uint64_t>::dst);
  check_writes(call, copies, writes);
  const auto reads = blocks_by_address(copies, &SwapSides::src, copies.by_src, &BlockPair<uint64_t>::src);
  check_reads(call, copies, reads, writes);
}

// The memory of one tensor.
struct Extent {
  uint64_t begin, end;
  int64_t layer;
  bool is_dst;
};

const std::vector<Extent>& extents_by_address(const std::vector<SwapSides>& layers, int64_t block_bytes) {
  static thread_local std::vector<Extent> kept;
  std::vector<Extent>& extents = kept;
  extents.clear();
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const bool is_dst : {false, true}) {
      const SwapSide& side = is_dst ? layers[i].dst : layers[i].src;
      const uint64_t end = side.address + static_cast<uint64_t>(side.num_blocks) * block_bytes;
      extents.push_back({side.address, end, static_cast<int64_t>(i), is_dst});
    }
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  return extents;
}

// Which tensors share memory. src tensors that share memory only with each other do not count, because they are only
// read.
enum class Sharing : uint8_t {
  kNone,
  kWithinLayers,  // the src and the dst of one layer
  kAcrossLayers,  // tensors of different layers, or this cannot be excluded
};

Sharing sharing_of(const std::vector<SwapSides>& layers, int64_t block_bytes) {
  Extent furthest[2] = {};  // [0]: the src tensor that ends last, of those seen so far; [1]: the dst tensor
  bool is_shared = false, are_sources_shared = false;
  for (const Extent& extent : extents_by_address(layers, block_bytes)) {
    for (const Extent& before : furthest) {
      if (before.end <= extent.begin) continue;
      if (!before.is_dst && !extent.is_dst) {
        are_sources_shared = true;
      } else if (before.layer != extent.layer) {
        return Sharing::kAcrossLayers;
      } else {
        is_shared = true;
      }
    }
    Extent& of_kind = furthest[extent.is_dst];
    if (extent.end > of_kind.end) of_kind = extent;
  }
  if (!is_shared) return Sharing::kNone;
  // A dst tensor is compared only with the src tensor that ends last. If src tensors share memory with each other, the
  // dst tensor may also share memory with another src tensor, which may be of another layer.
  return are_sources_shared ? Sharing::kAcrossLayers : Sharing::kWithinLayers;
}

}  // namespace

template <class Id>
void check_overlaps(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                    const BlockPairs<Id>& pairs, const MappingRows& rows) {
  const Sharing sharing = sharing_of(layers, block_bytes);
  if (sharing == Sharing::kNone) return;
  Pairs by_dst;
  by_dst.reserve(pairs.size());
  uint64_t src_end = 0;
  for (const BlockPair<Id>& pair : pairs) {
    by_dst.push_back({pair.src, pair.dst});
    src_end = std::max(src_end, static_cast<uint64_t>(pair.src) + 1);
  }
  Pairs by_src = by_dst;
  sort_by<&BlockPair<uint64_t>::src>(by_src, src_end);
  const auto check = [&](const std::vector<SwapSides>& of) {
    check_blocks(call, {of, static_cast<uint64_t>(block_bytes), by_src, by_dst, rows});
  };
  if (sharing == Sharing::kAcrossLayers) return check(layers);
  // Compares the blocks within each layer. If the distance from dst to src is that of the layer before, the same blocks
  // overlap, and the layer need not be checked. checked_distance starts with a value other than the first distance.
  uint64_t checked_distance = layers[0].src.address - layers[0].dst.address + 1;
  for (const SwapSides& layer : layers) {
    const uint64_t distance = layer.src.address - layer.dst.address;
    if (distance != checked_distance) check({layer});
    checked_distance = distance;
  }
}

template void check_overlaps(const Call&, const std::vector<SwapSides>&, int64_t, const BlockPairs<uint32_t>&,
                             const MappingRows&);
template void check_overlaps(const Call&, const std::vector<SwapSides>&, int64_t, const BlockPairs<uint64_t>&,
                             const MappingRows&);

}  // namespace multikv
