#include <limits>

#include "frontend/check/formats.h"
#include "frontend/check/planes.h"
#include "frontend/check/shapes.h"
#include "frontend/check/strided.h"
#include "frontend/check/swap_pairs.h"
#include "params/blocks_params.h"

namespace multikv {

namespace {

constexpr std::string_view kCaches = "caches";

bool have_equal_layouts(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim() || a.element_bytes() != b.element_bytes()) return false;
  for (int64_t d = 0; d < a.dim(); ++d) {
    if (a.size(d) != b.size(d) || a.stride(d) != b.stride(d)) return false;
  }
  return true;
}

// num_tokens == -1: all tokens of the plane's blocks.
BlockLayout block_layout(const Call& call, int64_t index, const Tensor& plane, int64_t num_tokens, RowOrder order) {
  BlockLayout layout{};
  layout.stride_block_bytes = stride_bytes(plane, 0);
  layout.token_bytes = plane.element_bytes();
  for (int64_t d = 2; d < plane.dim(); ++d) layout.token_bytes = wrapping_product(layout.token_bytes, plane.size(d));
  layout.rows = block_rows(call, plane_name(kCaches, index), plane, num_tokens < 0 ? plane.size(1) : num_tokens, order);
  return layout;
}

// Sets the planes, which have been checked. Planes without bytes are left out unless with_empty is true.
template <class Item>
void set_planes(const Call& call, BlockPlanes& p, const ListOf<Item>& caches, int64_t num_tokens, RowOrder order,
                bool with_empty = false) {
  static thread_local PlaneCollector<BlockLayout> kept;
  PlaneCollector<BlockLayout>& collector = kept;
  collector.clear();
  BlockLayout layout{};
  int64_t sum = 0;
  for (int64_t i = 0; i < caches.size(); ++i) {
    if (i == 0 || !have_equal_layouts(caches[i], caches[i - 1])) {
      layout = block_layout(call, i, caches[i], num_tokens, order);
    }
    const int64_t bytes = layout.rows.num_elements();
    if (bytes == 0 && !with_empty) continue;
    collector.add(layout, {plane_data(call, kCaches, i, caches[i]), i});
    sum += bytes;
  }
  p.planes = collector.groups();
  if (p.planes.num_planes > 0) p.block_bytes = sum / p.planes.num_planes;
}

// The pairs of a block mapping that copy something, and what the checks need to name the pairs.
class CopiedPairs {
 public:
  using Pair = BlockPair<int64_t>;

  CopiedPairs(const Call& call, const HostIndices& mapping, int64_t num_pairs, int64_t num_blocks)
      : call_(call), mapping_(mapping), num_pairs_(num_pairs), num_blocks_(num_blocks), pairs_(kept()) {
    pairs_.clear();
    for (int64_t i = 0; i < num_pairs; ++i) {
      const Pair pair = row(i);
      if (pair.src < 0 || pair.dst < 0) continue;
      check_entry(call, "block_mapping", i, 0, "block", pair.src, num_blocks);
      check_entry(call, "block_mapping", i, 1, "block", pair.dst, num_blocks);
      if (pair.src != pair.dst) pairs_.push_back(pair);
    }
  }

  // Fails if a block is written by one pair, and read or written by another.
  void check_overlaps() {
    const auto end = static_cast<uint64_t>(num_blocks_);
    sort_by<&Pair::dst>(pairs_, end);
    for (size_t i = 1; i < pairs_.size(); ++i) {
      if (pairs_[i].dst == pairs_[i - 1].dst) fail_duplicate(pairs_[i].dst);
    }
    static thread_local BlockPairs<int64_t> kept_by_src;
    BlockPairs<int64_t>& by_src = kept_by_src;
    by_src = pairs_;
    sort_by<&Pair::src>(by_src, end);
    size_t write = 0;
    for (const Pair& read : by_src) {
      while (write < pairs_.size() && pairs_[write].dst < read.src) ++write;
      if (write < pairs_.size() && pairs_[write].dst == read.src) fail_overlap(read.src);
    }
  }

 private:
  static BlockPairs<int64_t>& kept() {
    static thread_local BlockPairs<int64_t> pairs;
    return pairs;
  }
  Pair row(int64_t i) const { return {mapping_.at(i, 0), mapping_.at(i, 1)}; }

  // Returns the first pair from `begin` on that copies something, and whose block kBlock is `block`.
  template <auto kBlock>
  int64_t find(int64_t block, int64_t begin = 0) const {
    for (int64_t i = begin; i < num_pairs_; ++i) {
      const Pair pair = row(i);
      if (pair.src >= 0 && pair.dst >= 0 && pair.src != pair.dst && pair.*kBlock == block) return i;
    }
    return num_pairs_;
  }
  [[noreturn]] void fail_duplicate(int64_t block) const {
    const int64_t first = find<&Pair::dst>(block), second = find<&Pair::dst>(block, first + 1);
    call_.fail(
        "block_mapping", "distinct destination blocks",
        join({"duplicate destination block ", text(block), " (pairs ", text(first), " and ", text(second), ")"}));
  }
  [[noreturn]] void fail_overlap(int64_t block) const {
    call_.fail("block_mapping", "source blocks that are not destination blocks",
               join({"block ", text(block), ", which pair ", text(find<&Pair::src>(block)), " reads and pair ",
                     text(find<&Pair::dst>(block)), " writes"}));
  }

  const Call& call_;
  const HostIndices& mapping_;
  int64_t num_pairs_, num_blocks_;
  BlockPairs<int64_t>& pairs_;
};

void check_mapping(const Call& call, const IndexLists& lists, const CopyBlocksLayersParams& p) {
  if (!lists.are_checked()) return;
  const HostIndices mapping = lists.on_host(p.block_mapping, 2);
  CopiedPairs pairs(call, mapping, p.block_mapping.size, p.num_blocks);
  if (lists.are_on_host()) pairs.check_overlaps();
}

// Adds an optional list of numbers of tokens, one for each of block_ids.
Indices add_tokens(const Call& call, IndexLists& lists, std::string_view argument, const OptionalTensor& tensor,
                   const IndexList& block_ids) {
  if (!tensor.has_value()) return {};
  const Indices tokens = lists.add(argument, *tensor).indices;
  check_size(call, argument, *tensor, 0, block_ids.size, "elements of block_ids");
  return tokens;
}

// Fails unless every block exists, and every number of tokens that belongs to a block is from 0 to `most`.
void check_blocks(const Call& call, const IndexLists& lists, const BlockPlanes& p, const IndexList& block_ids,
                  std::string_view argument, const Indices& tokens, int64_t most) {
  if (!lists.are_checked()) return;
  const HostIndices blocks = lists.on_host(block_ids), counts = lists.on_host({tokens, block_ids.size});
  for (int64_t i = 0; i < block_ids.size; ++i) {
    if (blocks[i] < 0) continue;
    check_entry(call, "block_ids", i, -1, "block", blocks[i], p.num_blocks);
    if (!counts.is_given() || (counts[i] >= 0 && counts[i] <= most)) continue;
    const std::string expected =
        counts[i] < 0 ? "at least 0" : join({"at most ", text(most), " (block size of caches)"});
    call.fail_index(argument, text(i), expected, counts[i]);
  }
}

}  // namespace

CopyBlocksLayersParams make_copy_blocks_layers_params(Call& call, const MutableTensorList& caches,
                                                      const Tensor& block_mapping, int64_t num_tokens) {
  CopyBlocksLayersParams p{};
  check_planes(call, kCaches, caches, {.has_one_block_size = num_tokens != -1, .is_written = true});
  check_at_least(call, "num_tokens", num_tokens, -1);
  const int64_t block_size = caches[0].size(1);
  if (num_tokens > block_size) {
    call.fail("num_tokens", join({"at most ", text(block_size), " (block size of caches)"}), text(num_tokens));
  }
  IndexLists lists(call);
  p.block_mapping = lists.add("block_mapping", block_mapping, 2);
  check_size(call, "block_mapping", block_mapping, 1, 2, "a source and a destination block");
  p.num_blocks = caches[0].size(0);
  p.are_lists_on_host = lists.are_on_host();
  check_mapping(call, lists, p);
  if (p.block_mapping.size > 0 && num_tokens != 0) set_planes(call, p, caches, num_tokens, RowOrder::kMemory);
  if (p.planes.num_planes == 0) call.set_nothing_to_do();
  return p;
}

ZeroBlocksParams make_zero_blocks_params(Call& call, const MutableTensorList& caches, const Tensor& block_ids,
                                         const OptionalTensor& first_token) {
  ZeroBlocksParams p{};
  const bool has_tokens = first_token.has_value();
  check_planes(call, kCaches, caches, {.has_one_block_size = has_tokens, .is_written = true});
  IndexLists lists(call);
  p.block_ids = lists.add("block_ids", block_ids);
  p.first_token = add_tokens(call, lists, "first_token", first_token, p.block_ids);
  p.num_blocks = caches[0].size(0);
  p.are_lists_on_host = lists.are_on_host();
  constexpr int64_t kMost = std::numeric_limits<int64_t>::max();
  check_blocks(call, lists, p, p.block_ids, "first_token", p.first_token, kMost);
  const RowOrder order = has_tokens ? RowOrder::kTokenMajor : RowOrder::kMemory;
  if (p.block_ids.size > 0) set_planes(call, p, caches, -1, order);
  if (p.planes.num_planes == 0) call.set_nothing_to_do();
  return p;
}

ChecksumBlocksParams make_checksum_blocks_params(Call& call, const TensorList& caches, const Tensor& block_ids,
                                                 const MutableTensor& out, const OptionalTensor& num_tokens) {
  ChecksumBlocksParams p{};
  check_planes(call, kCaches, caches, {.has_one_block_size = num_tokens.has_value()});
  IndexLists lists(call);
  p.block_ids = lists.add("block_ids", block_ids);
  check_device_and_dim(call, "out", out, 2);
  check_dtype(call, "out", out, Dtype::kInt64);
  check_size(call, "out", out, 0, p.block_ids.size, "elements of block_ids");
  check_size(call, "out", out, 1, caches.size(), "number of caches");
  check_writable(call, "out", out);
  p.num_tokens = add_tokens(call, lists, "num_tokens", num_tokens, p.block_ids);
  p.num_blocks = caches[0].size(0);
  p.block_size = caches[0].size(1);
  p.are_lists_on_host = lists.are_on_host();
  check_blocks(call, lists, p, p.block_ids, "num_tokens", p.num_tokens, p.block_size);
  p.out_stride_block_bytes = stride_bytes(out, 0);
  if (p.block_ids.size == 0) {
    call.set_nothing_to_do();
    return p;
  }
  set_planes(call, p, caches, -1, RowOrder::kLogical, /*with_empty=*/true);
  p.out = mutable_data(call, "out", out);
  return p;
}

}  // namespace multikv
