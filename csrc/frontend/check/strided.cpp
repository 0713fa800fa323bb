#include "frontend/check/strided.h"

namespace multikv {

namespace {

struct Dim {
  int64_t size, src_stride, dst_stride;
};

// Adds the next dimension outwards to what has been merged; false: one too many.
bool add(Rows& rows, const Dim& dim) {
  const int outer = rows.num_dims - 1;
  if (outer < 0 && dim.src_stride == rows.row_size && dim.dst_stride == rows.row_size) {
    rows.row_size *= dim.size;
    return true;
  }
  rows.num_rows *= dim.size;
  if (outer >= 0 && dim.src_stride == rows.src_stride[outer] * rows.size[outer] &&
      dim.dst_stride == rows.dst_stride[outer] * rows.size[outer]) {
    rows.size[outer] *= dim.size;
    return true;
  }
  if (rows.num_dims == Rows::kMaxDims) return false;
  rows.size[rows.num_dims] = dim.size;
  rows.src_stride[rows.num_dims] = dim.src_stride;
  rows.dst_stride[rows.num_dims] = dim.dst_stride;
  ++rows.num_dims;
  return true;
}

}  // namespace

Rows merge_rows(const Call& call, std::string_view src_name, const Tensor& src, int64_t src_dim, const Tensor& dst,
                int64_t dst_dim, int64_t unit, std::string_view what) {
  constexpr int kMost = 64;  // that an element could be found through: their sizes are at least 2
  Dim dims[kMost];
  int count = 0;
  bool fits = true;
  for (int64_t d = dst.dim() - 1; d >= dst_dim; --d) {
    if (dst.size(d) == 1) continue;
    if (count == kMost) {
      fits = false;
      break;
    }
    // In memory from the innermost outwards; most tensors are.
    const Dim dim{dst.size(d), src.stride(d - dst_dim + src_dim) * unit, dst.stride(d) * unit};
    int at = count++;
    for (; at > 0 && dims[at - 1].dst_stride > dim.dst_stride; --at) dims[at] = dims[at - 1];
    dims[at] = dim;
  }
  Rows rows{};
  rows.row_size = unit;
  rows.num_rows = 1;
  for (int i = 0; fits && i < count; ++i) fits = add(rows, dims[i]);
  if (!fits) {
    call.fail(src_name, join({what, "at most ", std::to_string(Rows::kMaxDims), " strided dimensions"}),
              join({"shape ", shape_text(src)}));
  }
  return rows;
}

}  // namespace multikv
