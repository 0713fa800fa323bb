// Moving bytes in vectors of the width this file is compiled for.
//
// Everything here is in an anonymous namespace: a symbol that two instruction sets shared could run on the wrong CPU.
#pragma once

#if defined(__SSE2__)
// GCC 12 warns of its own header, whose functions begin with a vector that is undefined on purpose.
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

namespace multikv::cpu {
namespace {

#if defined(__AVX512BW__)
constexpr Isa kIsa = Isa::kAvx512;
using Bytes = __m512i;
inline void stream(void* to, Bytes value) { _mm512_stream_si512(static_cast<Bytes*>(to), value); }
#elif defined(__AVX2__)
constexpr Isa kIsa = Isa::kAvx2;
using Bytes = __m256i;
inline void stream(void* to, Bytes value) { _mm256_stream_si256(static_cast<Bytes*>(to), value); }
#elif defined(__SSE2__)
constexpr Isa kIsa = Isa::kBaseline;
using Bytes = __m128i;
inline void stream(void* to, Bytes value) { _mm_stream_si128(static_cast<Bytes*>(to), value); }
#else
constexpr Isa kIsa = Isa::kBaseline;
struct Bytes {
  uint64_t words[2];
};
inline void stream(void* to, Bytes value) { std::memcpy(to, &value, sizeof value); }
#endif

inline Bytes load(const void* from) {
  Bytes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(void* to, Bytes value) { std::memcpy(to, &value, sizeof value); }

// Streaming stores are not ordered with others: a kernel that used them ends with this.
inline void finish(Stores stores) {
#if defined(__SSE2__)
  if (stores == Stores::kStreaming) _mm_sfence();
#else
  (void)stores;
#endif
}

// Into the second-level cache, for soon.
inline void prefetch(const void* from) { __builtin_prefetch(from, 0, 2); }

// What a copy or a conversion reads after `from`, while it does that: the CPU does not foresee where the next piece
// lies. It takes the first `kBytes` of it, or as many as this one has.
class Ahead {
 public:
  static constexpr int64_t kBytes = 8192;

  // next == nullptr: unknown.
  Ahead(const void* from, const void* next) : next_(static_cast<const char*>(next == nullptr ? from : next)) {}

  // Of `num_bytes` bytes from byte i on.
  [[gnu::always_inline]] void fetch(int64_t i, int64_t num_bytes) const {
    if (i >= kBytes) return;
    for (int64_t j = 0; j < num_bytes; j += 64) prefetch(next_ + i + j);
  }

 private:
  const char* next_;
};

// For tokens whose heads are taken one after the other, across all of them, which the CPU foresees least: from a head
// to the one that is kHeads later, perhaps of the next tokens. One head is too late for memory; eight are no better.
inline int64_t bytes_ahead(int64_t head, int64_t num_heads, int64_t head_bytes, int64_t bytes_of_tokens) {
  constexpr int64_t kHeads = 4;
  const int64_t heads = num_heads < kHeads ? num_heads : kHeads;
  return heads * head_bytes + (head + heads < num_heads ? 0 : bytes_of_tokens - num_heads * head_bytes);
}

// Whether stores that bypass the caches pay: for whole lines, or so many bytes that the first and the last line matter
// little.
inline bool is_worth_streaming(const void* to, int64_t num_bytes) {
  const bool is_whole_lines = ((reinterpret_cast<intptr_t>(to) | num_bytes) & 63) == 0;
  return is_whole_lines || num_bytes >= 4 * static_cast<int64_t>(sizeof(Bytes));
}

// `next`: what will be read after this; see Ahead.
inline void copy(char* to, const char* from, int64_t num_bytes, Stores stores, const char* next = nullptr) {
  constexpr int64_t kWidth = sizeof(Bytes);
  if (num_bytes < kWidth) {
    std::memcpy(to, from, num_bytes);
    return;
  }
  const Ahead ahead(from, next);
  int64_t i = 0;
  if (stores == Stores::kStreaming && is_worth_streaming(to, num_bytes)) {
    const int64_t unaligned = -reinterpret_cast<intptr_t>(to) & (kWidth - 1);
    if (unaligned != 0) store(to, load(from));
    i = unaligned;
    for (; i + 4 * kWidth <= num_bytes; i += 4 * kWidth) {
      ahead.fetch(i, 4 * kWidth);
      const Bytes a = load(from + i), b = load(from + i + kWidth);
      const Bytes c = load(from + i + 2 * kWidth), d = load(from + i + 3 * kWidth);
      stream(to + i, a);
      stream(to + i + kWidth, b);
      stream(to + i + 2 * kWidth, c);
      stream(to + i + 3 * kWidth, d);
    }
    for (; i + kWidth <= num_bytes; i += kWidth) stream(to + i, load(from + i));
  } else {
    for (; i + kWidth <= num_bytes; i += kWidth) {
      ahead.fetch(i, kWidth);
      store(to + i, load(from + i));
    }
  }
  // The last vector overlaps what is written already, with the same bytes.
  if (i < num_bytes) store(to + num_bytes - kWidth, load(from + num_bytes - kWidth));
}

// Subnormal numbers count as themselves, whatever the caller's thread has set (torch.set_flush_denormal).
class IeeeSubnormals {
 public:
#if defined(__SSE2__)
  IeeeSubnormals() : previous_(_mm_getcsr()) { _mm_setcsr(previous_ & ~kFlushAndDenormalsAreZero); }
  ~IeeeSubnormals() { _mm_setcsr(previous_); }

 private:
  static constexpr unsigned kFlushAndDenormalsAreZero = 0x8040;
  unsigned previous_;
#endif
};

}  // namespace
}  // namespace multikv::cpu
