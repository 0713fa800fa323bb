#include <concepts>

#include "cpu/isa/simd/copy.h"
#include "params/swap_params.h"

namespace multikv::cpu {
namespace {

// The last i with value(i) <= wanted, of `count` values in ascending order. value(0) <= wanted.
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

// All copies of an op as one range of bytes; a thread copies [begin, end) of it. `next`: see copy().
struct ByteRange {
  int64_t begin, end;
  Stores stores;

  // Copies what is in the range of one copy of `num_bytes` bytes, which begins at `first`.
  void copy_part(char* dst, const char* src, int64_t num_bytes, int64_t first, const char* next) const {
    const int64_t from = begin > first ? begin - first : 0;
    const int64_t to = end - first < num_bytes ? end - first : num_bytes;
    copy(dst + from, src + from, to - from, stores, next);
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
