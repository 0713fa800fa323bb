// Two tensors of one shape, as rows that are contiguous in both.
#pragma once

#include "core/rows.h"
#include "frontend/check/call.h"

namespace multikv {

// One of the two tensors: its dimensions from `first_dim` on.
struct StridedSide {
  const Tensor& tensor;
  int64_t first_dim = 0;
};

// Merges dimensions that follow each other in the memory of both tensors, whatever their order. Sizes and strides of
// the result count units, of which an element has `unit`: 1 for elements, the element size for bytes. Fails if more
// dimensions are left than StridedRows has; `what` precedes "at most 8 strided dimensions" in the text.
StridedRows strided_rows(const Call& call, std::string_view src_name, StridedSide src, StridedSide dst, int64_t unit,
                         std::string_view what = "");

}  // namespace multikv
