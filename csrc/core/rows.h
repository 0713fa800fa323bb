// Tensors that are not caches: rows and heads of tokens, and pairs of tensors with any strides.
#pragma once

#include <cstdint>

#include "core/alignment.h"

namespace multikv {

// A tensor [tokens, row] whose rows are contiguous.
struct TokenRows {
  char* data;  // ops read it, unless they say that they write
  int64_t stride_token_bytes;
  int64_t row_bytes;

  constexpr char* row(int64_t token) const { return data + token * stride_token_bytes; }
  AlignmentBits alignment_bits() const { return AlignmentBits(data) | stride_token_bytes | row_bytes; }
};

// A tensor [tokens, heads, head] whose heads are contiguous.
struct TokenHeads {
  char* data;  // ops read it, unless they say that they write
  int64_t stride_token_bytes, stride_head_bytes;
  int64_t head_bytes;

  constexpr char* head(int64_t token, int64_t head) const {
    return data + token * stride_token_bytes + head * stride_head_bytes;
  }
  AlignmentBits alignment_bits() const {
    return AlignmentBits(data) | stride_token_bytes | stride_head_bytes | head_bytes;
  }
};

// Two tensors of one shape as rows that are contiguous in both, repeated over up to eight strided dimensions, the
// first of them innermost. The struct that holds a StridedRows says whether its sizes and strides count bytes or
// elements.
struct StridedRows {
  static constexpr int kMaxDims = 8;
  int64_t row_size;
  int64_t num_rows;  // product of size[0 .. num_dims)
  int num_dims;
  int64_t size[kMaxDims];
  int64_t src_stride[kMaxDims];
  int64_t dst_stride[kMaxDims];

  constexpr int64_t num_elements() const { return num_rows * row_size; }
  AlignmentBits src_alignment_bits() const { return alignment_bits(src_stride); }
  AlignmentBits dst_alignment_bits() const { return alignment_bits(dst_stride); }

 private:
  AlignmentBits alignment_bits(const int64_t* strides) const {
    AlignmentBits bits(row_size);
    for (int d = 0; d < num_dims; ++d) bits = bits | strides[d];
    return bits;
  }
};

}  // namespace multikv
