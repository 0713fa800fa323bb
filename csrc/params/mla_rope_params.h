// What the front end hands to a backend for the ops of family mla_rope.
#pragma once

#include "params/mla_params.h"

namespace multikv {

struct ConcatAndCacheMlaRopeFusedParams {
  ConcatAndCacheMlaParams write;  // of what k_pe holds when it is rotated; write.k_pe is written, too
  Indices positions;              // [tokens]
  TokenHeads q_pe;                // [tokens, num_heads, rope_size]; rotated in place
  TokenRows cos_sin_cache;        // [num_positions, rope_size]: cosines, then sines
  int64_t num_heads, num_positions;
  Float table_dtype;
  bool is_neox;  // rotates the pairs (i, i + rope_size / 2); otherwise (2i, 2i + 1)

  constexpr Work work() const {
    Work work = write.work();
    const int64_t rotated = (num_heads + 1) * write.rope_size * num_bytes(write.dtype);
    work.bytes_read += 2 * rotated;  // read and written back in place
    return work;
  }
};
static_assert(LaunchParams<ConcatAndCacheMlaRopeFusedParams>);

}  // namespace multikv
