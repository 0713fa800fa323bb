// Software prefetches into the L2 cache. They serve the first bytes of each token, head or block, whose address follows
// no pattern that the hardware prefetcher recognises.
#pragma once

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

inline void prefetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// Prefetches the next input of a loop while the loop works on its current input. If the caller does not know the next
// input, the current input is prefetched kBytesAhead bytes ahead: a loop with many instructions for each cache line
// keeps too few loads in flight, and the hardware prefetcher stops at the end of each page.
class NextInput {
 public:
  // At most this many bytes of the next input are prefetched. The hardware prefetcher takes over from there.
  static constexpr int64_t kMaxBytes = 8192;

  // next == nullptr: the next input is unknown.
  NextInput(const void* current, const void* next)
      : next_(next == nullptr ? reinterpret_cast<intptr_t>(current) + kBytesAhead : reinterpret_cast<intptr_t>(next)),
        max_bytes_(next == nullptr ? INT64_MAX : kMaxBytes) {}

  // Prefetches `num_bytes` bytes of the next input, from `offset_bytes` on.
  [[gnu::always_inline]] void prefetch(int64_t offset_bytes, int64_t num_bytes) const {
    if (offset_bytes >= max_bytes_) return;
    for (int64_t i = 0; i < num_bytes; i += kCacheLine) {
      cpu::prefetch(reinterpret_cast<const void*>(next_ + offset_bytes + i));
    }
  }

 private:
  static constexpr int64_t kBytesAhead = 2048;
  const intptr_t next_;  // an address, which may lie past the end of the input
  const int64_t max_bytes_;
};

// The distance in bytes from a head to the head that a kernel reads kHeads steps later, or num_heads steps later if
// there are fewer than kHeads heads. The kernel reads head 0 of all tokens of a run, then head 1 of all of them, and so
// on. After the last head it continues with head 0 of the next run, which begins `tokens_bytes` after this one. With 8
// heads and kHeads = 4:
//
//   head            0   1   2   3   4            5            6            7
//   prefetches      4   5   6   7   0 (next run) 1 (next run) 2 (next run) 3 (next run)
//
// Prefetching one head ahead is too late to hide the latency of memory; eight heads are no better than four.
inline int64_t bytes_ahead(int64_t head, int64_t num_heads, int64_t head_bytes, int64_t tokens_bytes) {
  constexpr int64_t kHeads = 4;
  const int64_t heads = num_heads < kHeads ? num_heads : kHeads;
  return heads * head_bytes + (head + heads < num_heads ? 0 : tokens_bytes - num_heads * head_bytes);
}

}  // namespace
}  // namespace multikv::cpu
