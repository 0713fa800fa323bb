// Two tensors of one shape, as rows that lie dense in both.
#pragma once

#include "frontend/check/call.h"

namespace multikv {

// Merges dimensions that follow each other in memory on both sides, whatever their order: those of dst from `dst_dim`
// on, which are src's from `src_dim` on. Sizes and strides count units of which an element has `unit`. More dimensions
// than Rows has are an error, which calls what is copied `what`.
Rows merge_rows(const Call& call, std::string_view src_name, const Tensor& src, int64_t src_dim, const Tensor& dst,
                int64_t dst_dim, int64_t unit, std::string_view what);

}  // namespace multikv
