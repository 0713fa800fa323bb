// The norm and the rotation of heads of bfloat16 elements in vector registers.
#pragma once

#include "cpu/isa/codec/rms_norm.h"
#include "cpu/isa/codec/rotate_vectors.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// Whether HeadVectors takes the heads of a call.
inline bool takes_heads(const multikv::Rope& rope, int64_t head_size) {
  return head_size % kWords == 0 && head_size <= NormWeights<BFloat16>::kMaxElements && rope.offset % kWords == 0 &&
         takes_pairs(rope.num_pairs(), rope.is_neox);
}

// What is done to a head.
struct HeadSteps {
  bool norms, rotates;
};

// The norm of a head: its elements are multiplied by `factor` and by weights.
struct HeadNorm {
  float factor;
  const NormWeights<BFloat16>& weights;

  // Whether TameRounding can be used for tame elements that this norm multiplies. The factor is checked too: it depends
  // on all elements that are normed, but only those that are rotated are known to be tame.
  bool is_tame() const { return weights.are_tame() && factor >= 0x1p-25f && factor <= 0x1p25f; }
};

// Norms and rotates heads of a token.
template <FloatElement Table>
class HeadVectors {
 public:
  HeadVectors(const QkNormRopeCacheParams& p, const HeadSteps& steps, const RopeTable& values,
              const TameRopeTable& tame)
      : steps_(steps), pairs_({p.rope.offset, 0, steps.rotates ? p.rope.num_pairs() : 0, p.rope.num_pairs()}),
        passed_end_(steps.rotates ? p.rope.offset : p.head_size),
        passed_begin_(steps.rotates ? p.rope.offset + p.rope.size : p.head_size), head_size_(p.head_size),
        is_neox_(p.rope.is_neox), values_(values), tame_(tame) {}

  // The output may be the source, unless stores are streaming.
  void operator()(char* to, const char* from, const HeadNorm& norm, Stores stores) const {
    const bool is_tame = tame_.is_tame && (!steps_.norms || norm.is_tame()) && are_tame(from, pairs_, is_neox_);
    if (stores == Stores::kStreaming) {
      process(is_tame, from, norm, [to](int64_t i, Bytes words) { stream(to + 2 * i, words); });
    } else {
      process(is_tame, from, norm, [to](int64_t i, Bytes words) { store(to + 2 * i, words); });
    }
  }

 private:
  template <WordPut Put>
  void process(bool is_tame, const char* from, const HeadNorm& norm, const Put& put) const {
    if (is_tame) process<TameRounding>(from, norm, put);
    else process<AnyRounding>(from, norm, put);
  }

  template <Rounding Round, WordPut Put>
  void process(const char* from, const HeadNorm& norm, const Put& put) const {
    const VectorRope<Round, Table> rotate(values_, tame_);
    if (steps_.norms) {
      const auto& weights = norm.weights.values();
      pass(NormedVectors<AnyRounding>{from, weights, all(norm.factor)}, put);
      rotate(NormedVectors<Round>{from, weights, all(norm.factor)}, put, pairs_, is_neox_);
    } else {
      const auto source = [from](int64_t i) { return widen(load(from + 2 * i)); };
      pass(source, put);
      rotate(source, put, pairs_, is_neox_);
    }
  }

  // Writes the elements that are not rotated.
  template <WordSource Source, WordPut Put>
  [[gnu::always_inline]] void pass(const Source& source, const Put& put) const {
    for (int64_t i = 0; i < passed_end_; i += kWords) put(i, narrow(source(i)));
    for (int64_t i = passed_begin_; i < head_size_; i += kWords) put(i, narrow(source(i)));
  }

  const HeadSteps steps_;
  const RotatedPairs pairs_;
  const int64_t passed_end_, passed_begin_;  // the elements below passed_end_ and from passed_begin_ on are not rotated
  const int64_t head_size_;
  const bool is_neox_;
  const RopeTable& values_;
  const TameRopeTable& tame_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
