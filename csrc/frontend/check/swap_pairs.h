// The pairs of blocks that a swap copies, and a radix sort of them. The sort takes time linear in the number of pairs,
// and so do the checks after it unless tensors share memory. So a call with thousands of pairs takes microseconds.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

#include "frontend/check/call.h"

namespace multikv {

// Block `src` of a tensor is copied to block `dst` of another tensor, or of the same one (copy_blocks_layers). Sorting
// takes half as long for 32-bit ids as for 64-bit ids.
template <class Id>
struct BlockPair {
  Id src, dst;
};
template <class Id>
using BlockPairs = std::vector<BlockPair<Id>>;

// The rows of block_mapping, in place.
struct MappingRows {
  const int64_t* data;
  int64_t stride, size;

  BlockPair<int64_t> row(int64_t i) const { return {data[i * stride], data[i * stride + 1]}; }
  // Returns the number of the first row from `begin` on that meets the condition; `size` if none does.
  template <class Condition>
  int64_t find(Condition condition, int64_t begin = 0) const {
    while (begin < size && !condition(row(begin))) ++begin;
    return begin;
  }
};

// One of the two tensors of a layer, which is seen as blocks.
struct SwapSide {
  std::string_view name;  // of the argument: src or dst
  int64_t index;          // of the tensor in the list of the argument; -1 if the argument is not a list
  uint64_t address;
  int64_t num_blocks;

  std::string text() const { return index < 0 ? std::string(name) : join({name, "[", multikv::text(index), "]"}); }
};

struct SwapSides {
  SwapSide src, dst;
};

// Sorts pairs by the member kKey, whose values are below `end`. This is a stable radix sort that starts with the least
// significant digit. If the values have `width` bits, there are ceil(width / kMaxBits) passes, and a digit has
// ceil(width / passes) bits.
template <auto kKey, class Id>
void sort_by(BlockPairs<Id>& pairs, uint64_t end) {
  constexpr int kMaxBits = 11;
  if (pairs.size() < 64) {
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const BlockPair<Id>& a, const BlockPair<Id>& b) { return a.*kKey < b.*kKey; });
    return;
  }
  static thread_local BlockPairs<Id> kept;
  BlockPairs<Id>& other = kept;  // a reference, because every access to a thread_local variable is a function call
  other.resize(pairs.size());
  const int width = std::bit_width(end - 1), passes = (width + kMaxBits - 1) / kMaxBits;
  const int bits = passes == 0 ? 0 : (width + passes - 1) / passes;
  const Id mask = (Id{1} << bits) - 1;
  size_t begins[1 << kMaxBits];
  for (int shift = 0; shift < width; shift += bits) {
    std::fill_n(begins, mask + 1, 0);
    const auto digit = [&](const BlockPair<Id>& pair) { return (pair.*kKey >> shift) & mask; };
    for (const BlockPair<Id>& pair : pairs) ++begins[digit(pair)];
    size_t begin = 0;
    for (Id i = 0; i <= mask; ++i) begin += std::exchange(begins[i], begin);
    BlockPair<Id>* const to = other.data();
    for (const BlockPair<Id>& pair : pairs) to[begins[digit(pair)]++] = pair;
    pairs.swap(other);
  }
}

}  // namespace multikv
