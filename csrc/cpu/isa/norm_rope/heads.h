// The norm and the rotation of the heads of one token.
#pragma once

#include "cpu/isa/norm_rope/head_vectors.h"
#include "cpu/isa/simd/copy.h"

namespace multikv::cpu {
namespace {

// The cosines and sines of a token, in pieces of at most RopeTable::kMaxPairs pairs.
template <FloatElement T, FloatElement Table>
class TokenTable {
 public:
  TokenTable(const multikv::Rope& rope, bool is_for_vectors) : rope_(rope), is_for_vectors_(is_for_vectors) {}

  // Returns the cosines and sines of the pairs begin .. begin + count - 1.
  const RopeTable& load(int64_t token, int64_t begin, int64_t count) {
    if (token == token_ && begin == begin_) return table_;
    token_ = token, begin_ = begin;
    const int64_t sines = rope_.num_pairs() * kBytes;
    const RopeOrder order = Rope<T, Table>::order(rope_.is_neox);
    const char* row = rope_.section.is_given ? gather(token, begin, count)
                                             : rope_.cos_sin_cache.row(rope_.positions.at(token)) + begin * kBytes;
    fill<Table>(table_.cos, row, count, order);
    fill<Table>(table_.sin, rope_.section.is_given ? row + sizeof gathered_ / 2 : row + sines, count, order);
#ifdef MULTIKV_HAS_SIMD
    if (is_for_vectors_) tame_.fill(table_, count, order);
#endif
    return table_;
  }
#ifdef MULTIKV_HAS_SIMD
  const RopeTable& values() const { return table_; }
  const TameRopeTable& tame() const { return tame_; }
#endif

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
  [[maybe_unused]] const bool is_for_vectors_;
  int64_t token_ = -1, begin_ = 0;
  RopeTable table_;
#ifdef MULTIKV_HAS_SIMD
  TameRopeTable tame_;
#endif
  char gathered_[2][RopeTable::kMaxPairs * sizeof(Table)];
};

// The memory that neighbouring heads of a token are written to.
struct HeadsOut {
  char* data;
  int64_t stride_bytes;
  Stores stores = Stores::kOrdinary;  // kStreaming only if HeadProcessor::streams()

  char* head(int64_t i) const { return data + i * stride_bytes; }
};

// Norms and rotates heads.
template <FloatElement T, FloatElement Table>
class HeadProcessor {
 public:
  static constexpr int64_t kMaxHeads = 64;  // the number of heads that are processed at a time

  explicit HeadProcessor(const QkNormRopeCacheParams& p)
      : p_(p), table_(p.rope, has_vectors_), query_weights_(p.query.weight, p.norm.weight_bias),
        key_weights_(p.key.weight, p.norm.weight_bias) {}

  // Whether heads can be streamed to `out`. Streaming stores of whole heads overlap with the rotation of the next head.
  // If the heads were rotated in scratch memory and copied to `out`, the op would take 10% longer with AVX2.
  bool streams(const TokenHeads& out) const {
    return has_vectors_ && p_.order != NormOrder::kAfterRope && out.alignment_bits().widest(kCacheLine) == kCacheLine;
  }

  // Processes the heads first .. first + count - 1 of a token, with count <= kMaxHeads. The output may be the source.
  // The caller starts with first == 0 for each token: for kAllHeads, this call computes the factor of all heads.
  void operator()(bool is_key, int64_t token, int64_t first, int64_t count, const HeadsOut& out) {
    const NormRopeHeads& heads = is_key ? p_.key : p_.query;
    const NormRows source = {heads.source.head(token, first), count, heads.source.head_bytes};
    const NormRows rotated = {out.data, count, out.stride_bytes};
    const Heads of = {is_key, token, first};
    switch (p_.order) {
      case NormOrder::kNone: return apply<false, true>(out, source, of);
      case NormOrder::kHead: find_factors(source); return apply<true, true>(out, source, of);
      case NormOrder::kAfterRope:
        apply<false, true>(out, source, of);
        find_factors(rotated);
        return apply<true, false>(out, rotated, of);
      case NormOrder::kAllHeads:
        if (first == 0) find_factor_of_all(heads, token);
        return apply<true, true>(out, source, of);
    }
  }

 private:
  static constexpr int64_t kBytes = sizeof(T);

  // The heads of a token from head `first` on.
  struct Heads {
    bool is_key;
    int64_t token, first;
  };

  // Norms heads, if kNorms, and rotates them, if kRotates.
  template <bool kNorms, bool kRotates>
  void apply(const HeadsOut& out, const NormRows& rows, const Heads& heads) {
#ifdef MULTIKV_HAS_SIMD
    if constexpr (std::same_as<T, BFloat16>) {
      if (has_vectors_) return apply_to_vectors({kNorms, kRotates}, out, rows, heads);
    }
#endif
    if (kNorms) norm(out, rows, heads);
    if (kRotates) rotate(out, kNorms ? NormRows{out.data, rows.num_rows, out.stride_bytes} : rows, heads.token);
  }

#ifdef MULTIKV_HAS_SIMD
  void apply_to_vectors(const HeadSteps& steps, const HeadsOut& out, const NormRows& rows, const Heads& heads) {
    const int64_t num_pairs = p_.rope.num_pairs();
    if (steps.rotates && num_pairs > 0) table_.load(heads.token, 0, num_pairs);
    const HeadVectors<Table> process(p_, steps, table_.values(), table_.tame());
    NormWeights<T>& weights = weights_of(heads);
    for (int64_t i = 0; i < rows.num_rows; ++i) {
      weights.load(weights_begin(heads, i), p_.head_size);
      prefetch_head(rows.row(i) + heads_of(heads).source.stride_token_bytes);
      process(out.head(i), rows.row(i), {factors_[i], weights}, out.stores);
    }
  }
#endif

  void prefetch_head(const char* head) const {
    for (int64_t i = 0; i < p_.head_size * kBytes; i += kCacheLine) prefetch(head + i);
  }

  const NormRopeHeads& heads_of(const Heads& heads) const { return heads.is_key ? p_.key : p_.query; }
  NormWeights<T>& weights_of(const Heads& heads) { return heads.is_key ? key_weights_ : query_weights_; }
  // Unless the order is kAllHeads, all heads have the same weights.
  int64_t weights_begin(const Heads& heads, int64_t i) const {
    return p_.order == NormOrder::kAllHeads ? (heads.first + i) * p_.head_size : 0;
  }

  void find_factors(const NormRows& rows) {
    sums_of_squares_(factors_, rows, p_.head_size);
    replace_by_reciprocal_roots(p_.norm, factors_, rows.num_rows, p_.head_size);
  }

  void find_factor_of_all(const NormRopeHeads& heads, int64_t token) {
    const int64_t size = heads.num_heads * p_.head_size;
    sums_of_squares_(factors_, {heads.source.head(token, 0), 1, 0}, size);
    replace_by_reciprocal_roots(p_.norm, factors_, 1, size);
    for (float& each : factors_) each = factors_[0];
  }

  void norm(const HeadsOut& out, const NormRows& rows, const Heads& heads) {
    NormWeights<T>& weights = weights_of(heads);
    for (int64_t begin = 0; begin < p_.head_size; begin += weights.kMaxElements) {
      const int64_t left = p_.head_size - begin, count = left < weights.kMaxElements ? left : weights.kMaxElements;
      for (int64_t i = 0; i < rows.num_rows; ++i) {
        weights.load(weights_begin(heads, i) + begin, count);
        normalise(out.head(i) + begin * kBytes, rows.row(i) + begin * kBytes, count, factors_[i], weights,
                  Stores::kOrdinary);
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
#ifdef MULTIKV_HAS_SIMD
  const bool has_vectors_ = std::same_as<T, BFloat16> && takes_heads(p_.rope, p_.head_size);
#else
  static constexpr bool has_vectors_ = false;
#endif
  TokenTable<T, Table> table_;
  SumsOfSquares<T> sums_of_squares_;
  NormWeights<T> query_weights_, key_weights_;
  float factors_[kMaxHeads];
};

}  // namespace
}  // namespace multikv::cpu
