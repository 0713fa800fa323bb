// The norm and the rotation of the heads of one token.
#pragma once

#include "cpu/isa/codec/rms_norm.h"

namespace multikv::cpu {
namespace {

// The cosines and sines of a token, in pieces of at most RopeTable::kMaxPairs pairs.
template <FloatElement T, FloatElement Table>
class TokenTable {
 public:
  explicit TokenTable(const multikv::Rope& rope) : rope_(rope) {}

  // Returns the pairs begin .. begin + count - 1.
  const RopeTable& load(int64_t token, int64_t begin, int64_t count) {
    if (token == token_ && begin == begin_) return table_;
    token_ = token, begin_ = begin;
    const int64_t sines = rope_.num_pairs() * kBytes;
    const RopeOrder order = Rope<T, Table>::order(rope_.is_neox);
    const char* row = rope_.section.is_given ? gather(token, begin, count)
                                             : rope_.cos_sin_cache.row(rope_.positions.at(token)) + begin * kBytes;
    fill<Table>(table_.cos, row, count, order);
    fill<Table>(table_.sin, rope_.section.is_given ? row + sizeof gathered_ / 2 : row + sines, count, order);
    return table_;
  }

 private:
  static constexpr int64_t kBytes = sizeof(Table);

  // Gathers cosines and sines from the rows of the three positions.
  const char* gather(int64_t token, int64_t begin, int64_t count) {
    const char* rows[3];
    for (int row = 0; row < 3; ++row) rows[row] = rope_.cos_sin_cache.row(rope_.positions.at(row, token));
    for (int64_t i = 0; i < count; ++i) {
      const char* row = rows[rope_.section.row_of(begin + i)];
      store_as(gathered_[0], i, load_as<Table>(row, begin + i));
      store_as(gathered_[1], i, load_as<Table>(row, rope_.num_pairs() + begin + i));
    }
    return gathered_[0];
  }

  const multikv::Rope& rope_;
  int64_t token_ = -1, begin_ = 0;
  RopeTable table_;
  char gathered_[2][RopeTable::kMaxPairs * sizeof(Table)];
};

// The memory that neighbouring heads of a token are written to.
struct HeadsOut {
  char* data;
  int64_t stride_bytes;

  char* head(int64_t i) const { return data + i * stride_bytes; }
};

// Norms and rotates heads.
template <FloatElement T, FloatElement Table>
class HeadProcessor {
 public:
  static constexpr int64_t kMaxHeads = 64;  // that are processed at a time

  explicit HeadProcessor(const QkNormRopeCacheParams& p)
      : p_(p), table_(p.rope), query_weights_(p.query.weight, p.norm.weight_bias),
        key_weights_(p.key.weight, p.norm.weight_bias) {}

  // Processes the heads first .. first + count - 1 of a token, with count <= kMaxHeads. The output may be the source.
  // The caller starts with first == 0 for each token: for kAllHeads, this call computes the factor of all heads.
  void operator()(bool is_key, int64_t token, int64_t first, int64_t count, const HeadsOut& out) {
    const NormRopeHeads& heads = is_key ? p_.key : p_.query;
    const NormRows source = {heads.source.head(token, first), count, heads.source.head_bytes};
    const NormRows rotated = {out.data, count, out.stride_bytes};
    switch (p_.order) {
      case NormOrder::kNone: return rotate(out, source, token);
      case NormOrder::kHead:
        find_factors(source);
        norm(out, source, is_key, 0);
        return rotate(out, rotated, token);
      case NormOrder::kAfterRope:
        rotate(out, source, token);
        find_factors(rotated);
        return norm(out, rotated, is_key, 0);
      case NormOrder::kAllHeads:
        if (first == 0) find_factor_of_all(heads, token);
        norm(out, source, is_key, first);
        return rotate(out, rotated, token);
    }
  }

 private:
  static constexpr int64_t kBytes = sizeof(T);

  void find_factors(const NormRows& rows) {
    sums_of_squares_(factors_, rows, p_.head_size);
    for (int64_t i = 0; i < rows.num_rows; ++i) factors_[i] = reciprocal_root(p_.norm, factors_[i], p_.head_size);
  }

  void find_factor_of_all(const NormRopeHeads& heads, int64_t token) {
    const int64_t size = heads.num_heads * p_.head_size;
    sums_of_squares_(factors_, {heads.source.head(token, 0), 1, 0}, size);
    const float factor = reciprocal_root(p_.norm, factors_[0], size);
    for (float& each : factors_) each = factor;
  }

  // Norms the rows, of which row 0 is head `first`. In every other order than kAllHeads, all heads have the weights of
  // head 0.
  void norm(const HeadsOut& out, const NormRows& rows, bool is_key, int64_t first) {
    NormWeights<T>& weights = is_key ? key_weights_ : query_weights_;
    const int64_t size = p_.head_size, step = p_.order == NormOrder::kAllHeads ? size : 0;
    for (int64_t begin = 0; begin < size; begin += weights.kMaxElements) {
      const int64_t count = size - begin < weights.kMaxElements ? size - begin : weights.kMaxElements;
      for (int64_t i = 0; i < rows.num_rows; ++i) {
        weights.load((first + i) * step + begin, count);
        normalise(out.head(i) + begin * kBytes, rows.row(i) + begin * kBytes, count, factors_[i], weights);
      }
    }
  }

  void rotate(const HeadsOut& out, const NormRows& rows, int64_t token) {
    const int64_t num_pairs = p_.rope.num_pairs(), offset = p_.rope.offset;
    if (out.data != rows.data) {
      for (int64_t i = 0; i < rows.num_rows; ++i) copy_unrotated(out.head(i), rows.row(i));
    }
    for (int64_t begin = 0; begin < num_pairs; begin += RopeTable::kMaxPairs) {
      const int64_t left = num_pairs - begin, count = left < RopeTable::kMaxPairs ? left : RopeTable::kMaxPairs;
      const RopeTable& table = table_.load(token, begin, count);
      for (int64_t i = 0; i < rows.num_rows; ++i) {
        Rope<T, Table>::rotate_part(out.head(i) + offset * kBytes, rows.row(i) + offset * kBytes, begin, count,
                                    num_pairs, p_.rope.is_neox, table);
      }
    }
  }

  void copy_unrotated(char* to, const char* from) const {
    const int64_t begin = p_.rope.offset * kBytes, end = (p_.rope.offset + p_.rope.size) * kBytes;
    const int64_t size = p_.head_size * kBytes;
    if (p_.rope.size == 0) return copy(to, from, size, Stores::kOrdinary);
    if (begin > 0) copy(to, from, begin, Stores::kOrdinary);
    if (end < size) copy(to + end, from + end, size - end, Stores::kOrdinary);
  }

  const QkNormRopeCacheParams& p_;
  TokenTable<T, Table> table_;
  SumsOfSquares<T> sums_of_squares_;
  NormWeights<T> query_weights_, key_weights_;
  float factors_[kMaxHeads];
};

}  // namespace
}  // namespace multikv::cpu
