#include "vec.h"

namespace multikv::cpu {
namespace {

// The last run that begins at or before that byte of all that is copied.
int64_t run_at(const SwapBlocksParams& p, int64_t byte) {
  int64_t low = 0, high = p.num_runs;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (p.runs[middle].begin_bytes <= byte) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

}  // namespace

// Bytes [begin, end) of all runs together.
template <>
void swap_blocks<kIsa>(const SwapBlocksParams& p, int64_t begin, int64_t end, Stores stores) {
  for (int64_t i = run_at(p, begin); i < p.num_runs && p.runs[i].begin_bytes < end; ++i) {
    const SwapRun& run = p.runs[i];
    const int64_t first = begin > run.begin_bytes ? begin - run.begin_bytes : 0;
    const int64_t left = end - run.begin_bytes;
    const int64_t last = left < run.num_bytes ? left : run.num_bytes;
    const auto* src = static_cast<const char*>(p.src);
    const char* next = i + 1 < p.num_runs ? src + p.runs[i + 1].src_offset_bytes : nullptr;
    copy(static_cast<char*>(p.dst) + run.dst_offset_bytes + first, src + run.src_offset_bytes + first, last - first,
         stores, next);
  }
  finish(stores);
}

}  // namespace multikv::cpu
