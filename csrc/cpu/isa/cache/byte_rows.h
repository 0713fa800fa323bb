// Copies rows of bytes to rows of an output.
#pragma once

#include "core/rows.h"
#include "cpu/isa/simd/copy.h"

namespace multikv::cpu {
namespace {

struct ByteRows {
  const TokenRows& dst;
  int64_t src_stride_bytes, row_bytes;

  // Copies `count` rows to the rows row, row + 1, ... of dst. If the rows of both sides are contiguous, this is one
  // copy, which also prefetches `next` (see copy()).
  void copy_from(const char* from, int64_t row, int64_t count, Stores stores, const char* next) const {
    char* to = dst.row(row);
    if (src_stride_bytes == row_bytes && dst.stride_token_bytes == row_bytes) {
      copy(to, from, count * row_bytes, stores, next);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      copy(to + i * dst.stride_token_bytes, from + i * src_stride_bytes, row_bytes, stores);
    }
  }
};

}  // namespace
}  // namespace multikv::cpu
