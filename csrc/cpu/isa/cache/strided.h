// Iterators over StridedRows (core/rows.h).
#pragma once

#include "core/rows.h"

namespace multikv::cpu {
namespace {

// Iterates over rows, and gives the offsets of the current row in both tensors. The first row can be any row.
class RowWalker {
 public:
  RowWalker(const StridedRows& rows, int64_t row) : rows_(rows) {
    for (int d = 0; d < rows.num_dims; ++d) {
      index_[d] = row % rows.size[d];
      row /= rows.size[d];
      src_ += index_[d] * rows.src_stride[d];
      dst_ += index_[d] * rows.dst_stride[d];
    }
  }

  int64_t src() const { return src_; }
  int64_t dst() const { return dst_; }

  void next() {
    for (int d = 0; d < rows_.num_dims; ++d) {
      src_ += rows_.src_stride[d];
      dst_ += rows_.dst_stride[d];
      if (++index_[d] < rows_.size[d]) return;
      index_[d] = 0;
      src_ -= rows_.size[d] * rows_.src_stride[d];
      dst_ -= rows_.size[d] * rows_.dst_stride[d];
    }
  }

 private:
  const StridedRows& rows_;
  int64_t index_[StridedRows::kMaxDims] = {};
  int64_t src_ = 0, dst_ = 0;
};

// Iterates over elements, in pieces that do not cross the end of a row. The first element can be any element.
class PieceWalker {
 public:
  struct Piece {
    int64_t src, dst, count;  // offsets and count in the unit of the StridedRows
  };

  PieceWalker(const StridedRows& rows, int64_t element)
      : row_size_(rows.row_size), column_(element % rows.row_size), row_(rows, element / rows.row_size) {}

  // Returns the next `most` elements, or fewer if the current row ends before.
  Piece next(int64_t most) {
    const int64_t left = row_size_ - column_;
    const Piece piece{row_.src() + column_, row_.dst() + column_, left < most ? left : most};
    column_ += piece.count;
    if (column_ == row_size_) {
      column_ = 0;
      row_.next();
    }
    return piece;
  }

 private:
  int64_t row_size_, column_;
  RowWalker row_;
};

}  // namespace
}  // namespace multikv::cpu
