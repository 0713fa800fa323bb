// Tensors that are not caches: the rows or heads of tokens, and pairs of tensors with arbitrary strides.
#pragma once

#include <cstdint>

#include "core/alignment.h"

namespace multikv {

// A tensor [tokens, row_size] whose rows are contiguous.
struct TokenRows {
  char* data;  // read, except where the params say that it is written
  int64_t stride_token_bytes;
  int64_t row_bytes;

  constexpr char* row(int64_t token) const { return data + token * stride_token_bytes; }
  AlignmentBits alignment_bits() const { return AlignmentBits(data) | stride_token_bytes | row_bytes; }
};

// A tensor [tokens, heads, head_size] whose heads are contiguous.
struct TokenHeads {
  char* data;  // read, except where the params say that it is written
  int64_t stride_token_bytes, stride_head_bytes;
  int64_t head_bytes;

  constexpr char* row(int64_t token) const { return data + token * stride_token_bytes; }
  constexpr char* head(int64_t token, int64_t head) const {
    return data + token * stride_token_bytes + head * stride_head_bytes;
  }
  AlignmentBits alignment_bits() const {
    return AlignmentBits(data) | stride_token_bytes | stride_head_bytes | head_bytes;
  }
};

// Two tensors of the same shape, cut into rows that are contiguous in both tensors. The rows are arranged in up to
// eight dimensions, of which dimension 0 is the innermost. Row (i0, i1, ...) starts at
//
//   src + i0 * src_stride[0] + i1 * src_stride[1] + ...     and     dst + i0 * dst_stride[0] + i1 * dst_stride[1] + ...
//
// The struct that holds a StridedRows says whether row_size and the strides count bytes or elements.
struct StridedRows {
  static constexpr int kMaxDims = 8;
  int64_t row_size;
  int64_t num_rows;  // product of size[0 .. num_dims)
  int num_dims;
  int64_t size[kMaxDims];  // rows in each dimension
  int64_t src_stride[kMaxDims];
  int64_t dst_stride[kMaxDims];

  bool operator==(const StridedRows&) const = default;
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
