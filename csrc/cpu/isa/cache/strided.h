// Strided rows, one after the other.
#pragma once

#include "params/params.h"

namespace multikv::cpu {
namespace {

// A row's place on both sides, from any row on.
class RowWalker {
 public:
  RowWalker(const Rows& rows, int64_t row) : rows_(rows) {
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
  const Rows& rows_;
  int64_t index_[Rows::kMaxDims] = {};
  int64_t src_ = 0, dst_ = 0;
};

// The same for elements of which each row has rows.row_size: pieces of rows, from any element on.
class PieceWalker {
 public:
  struct Piece {
    int64_t src, dst, count;
  };

  PieceWalker(const Rows& rows, int64_t element)
      : row_size_(rows.row_size), column_(element % rows.row_size), place_(rows, element / rows.row_size) {}

  // The next elements of one row, at most `most`.
  Piece next(int64_t most) {
    const int64_t left = row_size_ - column_;
    const Piece piece{place_.src() + column_, place_.dst() + column_, left < most ? left : most};
    column_ += piece.count;
    if (column_ == row_size_) {
      column_ = 0;
      place_.next();
    }
    return piece;
  }

 private:
  int64_t row_size_, column_;
  RowWalker place_;
};

}  // namespace
}  // namespace multikv::cpu
