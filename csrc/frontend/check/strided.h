// Describes two tensors of the same shape as rows that are contiguous in both (StridedRows), or the blocks of one
// tensor.
#pragma once

#include <span>

#include "core/rows.h"
#include "frontend/check/call.h"

namespace multikv {

// One of the two tensors: its dimensions from `first_dim` on.
struct StridedSide {
  const Tensor& tensor;
  int64_t first_dim = 0;
};

// A dimension of both tensors; the strides are in the unit of the StridedRows.
struct StridedDim {
  int64_t size, src_stride, dst_stride;
};

// Merges dimensions that are adjacent in the memory of both tensors, whatever the order of the dimensions. `unit` is 1
// if row_size and the strides of the result count elements, or the element size if they count bytes. Fails if more
// dimensions are left than StridedRows has; `what` precedes "at most 8 strided dimensions" in the error message.
StridedRows strided_rows(const Call& call, std::string_view src_name, StridedSide src, StridedSide dst, int64_t unit,
                         std::string_view what = "");
// Does the same for the given dimensions, from the innermost outwards. They are at most as many as StridedRows has.
StridedRows strided_rows(std::span<const StridedDim> dims, int64_t unit);

// The order in which block_rows() arranges the dimensions of a block.
enum class RowOrder : uint8_t {
  kMemory,      // by their strides, so that rows are as long as possible
  kTokenMajor,  // tokens in order; within a token, the other dimensions by their strides
  kLogical,     // in the order of the tensor's dimensions
};

// Describes the tokens 0 .. num_tokens - 1 of a block of a plane [blocks, tokens, ...], in bytes. The src and dst
// strides of the result are equal. Fails if more dimensions are left than StridedRows has.
StridedRows block_rows(const Call& call, std::string_view argument, const Tensor& plane, int64_t num_tokens,
                       RowOrder order);

}  // namespace multikv
