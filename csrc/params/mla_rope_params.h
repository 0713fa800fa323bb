// What the front end hands to a backend for the ops of family mla_rope.
#pragma once

#include "params/mla_params.h"

namespace multikv {

// The members are in the order in which the GPU kernel reads them. With few tokens, reading the parameters takes a
// measurable part of the kernel's time.
struct ConcatAndCacheMlaRopeFusedParams {
  Indices positions;  // [tokens]
  int64_t num_heads, num_positions;
  TokenHeads q_pe;          // [tokens, num_heads, rope_size]; rotated in place
  TokenRows cos_sin_cache;  // [num_positions, rope_size]: a row has rope_size / 2 cosines, then as many sines
  Float table_dtype;        // of cos_sin_cache
  bool is_neox;             // true: elements i and i + rope_size / 2 are a pair; false: elements 2i and 2i + 1 are
  ConcatAndCacheMlaParams write;  // the write to the cache; write.k_pe is first rotated in place

  constexpr Work work() const {
    Work work = write.work();
    const int64_t rotated = (num_heads + 1) * write.rope_size * num_bytes(write.dtype);
    // The rotation reads and writes q_pe and k_pe in place. Its reads and its writes are both added to bytes_read.
    // bytes_written remains the size of the output in the cache, because it decides whether stores to the cache are
    // streaming stores.
    work.bytes_read += 2 * rotated;
    return work;
  }
};
static_assert(LaunchParams<ConcatAndCacheMlaRopeFusedParams>);

}  // namespace multikv
