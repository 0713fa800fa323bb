#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

// The last of `count` sorted numbers that is at most `wanted`; number(0) is.
template <class Number>
int64_t last_at_most(int64_t wanted, int64_t count, Number number) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (number(middle) <= wanted) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// The part [begin, end) of all copies together that lies in this one, whose first byte is number `first` of all.
void copy_part(char* dst, const char* src, int64_t num_bytes, int64_t first, int64_t begin, int64_t end, Stores stores,
               const char* next) {
  const int64_t from = begin > first ? begin - first : 0;
  const int64_t to = end - first < num_bytes ? end - first : num_bytes;
  copy(dst + from, src + from, to - from, stores, next);
}

}  // namespace

template <>
void swap_blocks<kIsa>(const SwapBlocksParams& p, int64_t layer, int64_t begin, int64_t end, Stores stores) {
  const auto* src = static_cast<const char*>(p.layers[layer].src);
  auto* dst = static_cast<char*>(p.layers[layer].dst);
  int64_t i = last_at_most(begin / p.block_bytes, p.num_runs, [&](int64_t k) { return p.runs[k].begin; });
  for (; i < p.num_runs && p.runs[i].begin * p.block_bytes < end; ++i) {
    const SwapRun& run = p.runs[i];
    const char* next = i + 1 < p.num_runs ? src + p.runs[i + 1].src_block * p.block_bytes : nullptr;
    copy_part(dst + run.dst_block * p.block_bytes, src + run.src_block * p.block_bytes, run.num_blocks * p.block_bytes,
              run.begin * p.block_bytes, begin, end, stores, next);
  }
  finish(stores);
}

template <>
void swap_blocks_batch<kIsa>(const SwapBlocksBatchParams& p, int64_t begin, int64_t end, Stores stores) {
  int64_t i = last_at_most(begin, p.num_copies, [&](int64_t k) { return p.copies[k].begin_bytes; });
  for (; i < p.num_copies && p.copies[i].begin_bytes < end; ++i) {
    const SwapCopy& c = p.copies[i];
    const char* next = i + 1 < p.num_copies ? static_cast<const char*>(p.copies[i + 1].src) : nullptr;
    copy_part(static_cast<char*>(c.dst), static_cast<const char*>(c.src), c.num_bytes, c.begin_bytes, begin, end,
              stores, next);
  }
  finish(stores);
}

}  // namespace multikv::cpu
