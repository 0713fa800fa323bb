// Software prefetches into the L2 cache. Where a kernel goes from one token, head or block to the next, the addresses
// follow no pattern that the hardware prefetcher recognises.
#pragma once

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

inline void prefetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// Prefetches the next input of a loop while the loop works on its current input.
class NextInput {
 public:
  // The first bytes of the next input that are prefetched; what follows them is left to the hardware prefetcher.
  static constexpr int64_t kMaxBytes = 8192;

  // next == nullptr: the next input is unknown.
  NextInput(const void* current, const void* next)
      : next_(static_cast<const char*>(next == nullptr ? current : next)) {}

  // Prefetches `num_bytes` bytes of the next input, from `offset_bytes` on.
  [[gnu::always_inline]] void prefetch(int64_t offset_bytes, int64_t num_bytes) const {
    if (offset_bytes >= kMaxBytes) return;
    for (int64_t i = 0; i < num_bytes; i += kCacheLine) cpu::prefetch(next_ + offset_bytes + i);
  }

 private:
  const char* next_;
};

// For a loop over the heads of a run of tokens that reads one head of all the tokens at a time: the distance in bytes
// from `head` to the head that is read kHeads steps later. Near the last head, that is a head of the tokens after this
// run, which lie `tokens_bytes` behind it. Prefetching one head ahead is too late to hide the latency of memory; eight
// heads are no better than four.
inline int64_t bytes_ahead(int64_t head, int64_t num_heads, int64_t head_bytes, int64_t tokens_bytes) {
  constexpr int64_t kHeads = 4;
  const int64_t heads = num_heads < kHeads ? num_heads : kHeads;
  return heads * head_bytes + (head + heads < num_heads ? 0 : tokens_bytes - num_heads * head_bytes);
}

}  // namespace
}  // namespace multikv::cpu
