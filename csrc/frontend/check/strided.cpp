#include "frontend/check/strided.h"

#include "frontend/check/shapes.h"

namespace multikv {

namespace {

// Dimensions in ascending order of their stride in dst, apart from those that are appended.
class OrderedDims {
 public:
  // An insertion sort, because most tensors' dimensions are inserted in order. Returns false if there is no space.
  bool insert(const StridedDim& dim) {
    if (count_ == kMaxDims) return false;
    int at = count_++;
    for (; at > 0 && dims_[at - 1].dst_stride > dim.dst_stride; --at) dims_[at] = dims_[at - 1];
    dims_[at] = dim;
    return true;
  }
  // Makes a dimension the last, whatever its stride.
  bool append(const StridedDim& dim) {
    if (count_ == kMaxDims) return false;
    dims_[count_++] = dim;
    return true;
  }
  const StridedDim* begin() const { return dims_; }
  const StridedDim* end() const { return dims_ + count_; }

 private:
  static constexpr int kMaxDims = 64;  // 64 dimensions of at least 2 elements do not fit in memory
  StridedDim dims_[kMaxDims];
  int count_ = 0;
};

// Adds a dimension outside those that were added before.
//  - While rows.num_dims is 0, a dimension that is contiguous with the row in both tensors is merged into the row.
//  - Later, a dimension that continues the outermost dimension in both tensors is merged into that dimension.
//  - Any other dimension takes a new dimension of StridedRows. Returns false if none is left.
bool add(StridedRows& rows, const StridedDim& dim) {
  const int outer = rows.num_dims - 1;
  if (outer < 0 && dim.src_stride == rows.row_size && dim.dst_stride == rows.row_size) {
    rows.row_size = wrapping_product(rows.row_size, dim.size);
    return true;
  }
  rows.num_rows = wrapping_product(rows.num_rows, dim.size);
  if (outer >= 0 && dim.src_stride == wrapping_product(rows.src_stride[outer], rows.size[outer]) &&
      dim.dst_stride == wrapping_product(rows.dst_stride[outer], rows.size[outer])) {
    rows.size[outer] = wrapping_product(rows.size[outer], dim.size);
    return true;
  }
  if (rows.num_dims == StridedRows::kMaxDims) return false;
  rows.size[rows.num_dims] = dim.size;
  rows.src_stride[rows.num_dims] = dim.src_stride;
  rows.dst_stride[rows.num_dims] = dim.dst_stride;
  ++rows.num_dims;
  return true;
}

// Adds all dimensions. Returns false if there are too many.
bool add_all(StridedRows& rows, const OrderedDims& dims) {
  for (const StridedDim& dim : dims) {
    if (!add(rows, dim)) return false;
  }
  return true;
}

// Adds all dimensions of more than one element. Returns false if there are too many.
bool merge(StridedRows& rows, StridedSide src, StridedSide dst, int64_t unit) {
  OrderedDims dims;
  for (int64_t d = dst.tensor.dim() - 1; d >= dst.first_dim; --d) {  // from the innermost outwards
    const int64_t size = dst.tensor.size(d);
    if (size == 1) continue;
    const int64_t src_stride = src.tensor.stride(d - dst.first_dim + src.first_dim);
    const StridedDim dim{size, wrapping_product(src_stride, unit), wrapping_product(dst.tensor.stride(d), unit)};
    if (!dims.insert(dim)) return false;
  }
  return add_all(rows, dims);
}

}  // namespace

StridedRows strided_rows(const Call& call, std::string_view src_name, StridedSide src, StridedSide dst, int64_t unit,
                         std::string_view what) {
  StridedRows rows{};
  rows.row_size = unit;
  rows.num_rows = 1;
  if (!merge(rows, src, dst, unit)) {
    call.fail(src_name, join({what, "at most ", text(StridedRows::kMaxDims), " strided dimensions"}),
              shape_text(src.tensor));
  }
  return rows;
}

StridedRows block_rows(const Call& call, std::string_view argument, const Tensor& plane, int64_t num_tokens,
                       RowOrder order) {
  StridedRows rows{};
  rows.row_size = plane.element_bytes();
  rows.num_rows = 1;
  OrderedDims dims;
  bool is_good = true;
  for (int64_t d = plane.dim() - 1; d >= 1; --d) {
    const int64_t size = d == 1 ? num_tokens : plane.size(d), stride = stride_bytes(plane, d);
    if (size == 1) continue;
    const bool is_sorted = order == RowOrder::kMemory || (order == RowOrder::kTokenMajor && d > 1);
    is_good &= is_sorted ? dims.insert({size, stride, stride}) : dims.append({size, stride, stride});
  }
  is_good = is_good && add_all(rows, dims);
  if (!is_good) {
    call.fail(argument, join({"blocks of at most ", text(StridedRows::kMaxDims), " strided dimensions"}),
              shape_text(plane));
  }
  return rows;
}

StridedRows strided_rows(std::span<const StridedDim> dims, int64_t unit) {
  StridedRows rows{};
  rows.row_size = unit;
  rows.num_rows = 1;
  OrderedDims ordered;
  for (const StridedDim& dim : dims) {
    if (dim.size != 1) ordered.insert(dim);
  }
  add_all(rows, ordered);
  return rows;
}

}  // namespace multikv
