#include <concepts>

#include "cpu/isa/simd/copy.h"
#include "params/swap_params.h"

namespace multikv::cpu {
namespace {

// Returns the last i with value(i) <= wanted. value(0) to value(count - 1) ascend, and value(0) <= wanted.
template <std::invocable<int64_t> Value>
int64_t last_at_most(int64_t wanted, int64_t count, Value value) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (value(middle) <= wanted) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// The bytes [begin, end) that a thread copies. The bytes of all copies of an op (or of a layer) are numbered in order,
// from 0.
struct ByteRange {
  int64_t begin, end;
  Stores stores;

  // Does the part of one copy that lies in this range. The copy has `num_bytes` bytes, and its first byte has the
  // number `first`. `next`: see copy().
  void copy_part(char* dst, const char* src, int64_t num_bytes, int64_t first, const char* next) const {
    const int64_t part_begin = begin > first ? begin - first : 0;
    const int64_t part_end = end - first < num_bytes ? end - first : num_bytes;
    copy(dst + part_begin, src + part_begin, part_end - part_begin, stores, next);
  }
};

void swap_layer(const SwapBlocksParams& p, const SwapLayer& layer, const ByteRange& range) {
  const auto* src = static_cast<const char*>(layer.src);
  auto* dst = static_cast<char*>(layer.dst);
  int64_t i = last_at_most(range.begin / p.block_bytes, p.num_runs, [&](int64_t k) { return p.runs[k].begin; });
  for (; i < p.num_runs && p.runs[i].begin * p.block_bytes < range.end; ++i) {
    const SwapRun& run = p.runs[i];
    const char* next = i + 1 < p.num_runs ? src + p.runs[i + 1].src_block * p.block_bytes : nullptr;
    range.copy_part(dst + run.dst_block * p.block_bytes, src + run.src_block * p.block_bytes,
                    run.num_blocks * p.block_bytes, run.begin * p.block_bytes, next);
  }
  finish(range.stores);
}

}  // namespace

// The items are the bytes of all layers, layer by layer.
template <>
void run<kIsa>(const SwapBlocksParams& p, int64_t begin, int64_t end, Stores stores) {
  const int64_t layer_bytes = p.layer_bytes();
  while (begin < end) {
    const int64_t layer = begin / layer_bytes, first = layer * layer_bytes;
    const int64_t stop = end < first + layer_bytes ? end : first + layer_bytes;
    swap_layer(p, p.layers[layer], {begin - first, stop - first, stores});
    begin = stop;
  }
}

template <>
void run<kIsa>(const SwapBlocksBatchParams& p, int64_t begin, int64_t end, Stores stores) {
  const ByteRange range{begin, end, stores};
  int64_t i = last_at_most(begin, p.num_copies, [&](int64_t k) { return p.copies[k].begin_bytes; });
  for (; i < p.num_copies && p.copies[i].begin_bytes < end; ++i) {
    const SwapCopy& c = p.copies[i];
    const char* next = i + 1 < p.num_copies ? static_cast<const char*>(p.copies[i + 1].src) : nullptr;
    range.copy_part(static_cast<char*>(c.dst), static_cast<const char*>(c.src), c.num_bytes, c.begin_bytes, next);
  }
  finish(stores);
}

}  // namespace multikv::cpu
