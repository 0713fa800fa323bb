// Copies bytes with vector loads and stores.
#pragma once

#include "cpu/isa/simd/prefetch.h"

namespace multikv::cpu {
namespace {

// Streaming stores are slow on the incomplete cache lines at both ends of an output. They are used where there are no
// incomplete lines, or where the output has at least four vectors.
inline bool is_worth_streaming(const void* to, int64_t num_bytes) {
  return are_whole_cache_lines(reinterpret_cast<intptr_t>(to) | num_bytes) ||
         num_bytes >= 4 * static_cast<int64_t>(sizeof(Bytes));
}

// Copies with streaming stores until less than a vector is left, and returns how many bytes it has written. An ordinary
// store writes the bytes before the first aligned address. num_bytes >= sizeof(Bytes).
[[gnu::always_inline]] inline int64_t stream_vectors(char* to, const char* from, int64_t num_bytes,
                                                     const NextInput& next) {
  constexpr int64_t kWidth = sizeof(Bytes);
  const int64_t unaligned = -reinterpret_cast<intptr_t>(to) & (kWidth - 1);
  if (unaligned != 0) store(to, load(from));
  int64_t i = unaligned;
  for (; i + 4 * kWidth <= num_bytes; i += 4 * kWidth) {
    next.prefetch(i, 4 * kWidth);
    const Bytes a = load(from + i), b = load(from + i + kWidth);
    const Bytes c = load(from + i + 2 * kWidth), d = load(from + i + 3 * kWidth);
    stream(to + i, a);
    stream(to + i + kWidth, b);
    stream(to + i + 2 * kWidth, c);
    stream(to + i + 3 * kWidth, d);
  }
  for (; i + kWidth <= num_bytes; i += kWidth) stream(to + i, load(from + i));
  return i;
}

// Copies num_bytes bytes. `next` is the address that the caller will read after this copy; the copy prefetches it.
// nullptr: the caller does not know that address.
inline void copy(char* to, const char* from, int64_t num_bytes, Stores stores, const char* next = nullptr) {
  constexpr int64_t kWidth = sizeof(Bytes);
  if (num_bytes < kWidth) {
    std::memcpy(to, from, num_bytes);
    return;
  }
  const NextInput next_input(from, next);
  int64_t i = 0;
  if (stores == Stores::kStreaming && is_worth_streaming(to, num_bytes)) {
    i = stream_vectors(to, from, num_bytes, next_input);
  } else {
    // Two loops, with prefetches and without: from a single loop that tests the limit of the prefetches, GCC 12 makes
    // two jumps for each vector.
    const int64_t prefetched = num_bytes < NextInput::kMaxBytes ? num_bytes : NextInput::kMaxBytes;
    for (; i + kWidth <= prefetched; i += kWidth) {
      next_input.prefetch(i, kWidth);
      store(to + i, load(from + i));
    }
    for (; i + kWidth <= num_bytes; i += kWidth) store(to + i, load(from + i));
  }
  // The last vector overlaps the one before it and writes the same bytes there.
  if (i < num_bytes) store(to + num_bytes - kWidth, load(from + num_bytes - kWidth));
}

}  // namespace
}  // namespace multikv::cpu
