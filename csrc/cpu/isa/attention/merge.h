// Merges two results of attention for one head of one token.
#pragma once

#include "cpu/isa/attention/state.h"
#include "cpu/isa/codec/quantise.h"

namespace multikv::cpu {
namespace {

constexpr int64_t kMergeChunk = 256;

// How a head of a token is merged. kBoth: x = (prefix * prefix_weight + suffix * suffix_weight) / total; kPrefix and
// kSuffix: x is that of one side; kNeither: x is 0.
struct MergeRule {
  enum class From : uint8_t { kBoth, kPrefix, kSuffix, kNeither } from;
  float prefix_weight, suffix_weight, total;
  float lse;
};

inline bool is_infinite(float x) { return x == kInfinity || x == -kInfinity; }

inline MergeRule rule_of(float prefix_lse, float suffix_lse, bool is_merged) {
  using From = MergeRule::From;
  const bool has_prefix = is_merged && !is_infinite(prefix_lse), has_suffix = !is_merged || !is_infinite(suffix_lse);
  if (!has_prefix && !has_suffix) return {From::kNeither, 0, 0, 0, -kInfinity};
  if (!has_prefix) return {From::kSuffix, 0, 0, 0, suffix_lse};
  if (!has_suffix) return {From::kPrefix, 0, 0, 0, prefix_lse};
  const float most = prefix_lse > suffix_lse ? prefix_lse : suffix_lse;
  const float a = exp_of_nonpositive(prefix_lse - most), b = exp_of_nonpositive(suffix_lse - most);
  return {From::kBoth, a, b, a + b, most + log_of(a + b)};
}

// Writes float32 results to an output that is fp8 or has the type T of the inputs.
template <FloatElement T>
void write_merged(const MergeAttnStatesParams& p, char* to, const float* from, int64_t count) {
  if (p.codec.is_float()) {
    for (int64_t i = 0; i < count; ++i) reinterpret_cast<T*>(to)[i] = narrow<T>(from[i]);
    return;
  }
  with_fp8(p.codec.element, [&]<Element kElement>() {
    quantise<kElement>(reinterpret_cast<uint8_t*>(to), from, count, *p.output_scale, Stores::kOrdinary);
  });
}

// Merges `count` <= kMergeChunk elements. The output may be one of the inputs.
template <FloatElement T>
void merge_elements(const MergeAttnStatesParams& p, const MergeRule& rule, char* to, const T* prefix, const T* suffix,
                    int64_t count) {
  using From = MergeRule::From;
  float merged[kMergeChunk];
  if (rule.from == From::kBoth) {
    for (int64_t i = 0; i < count; ++i) {
      const float a = widen(prefix[i]) * rule.prefix_weight, b = widen(suffix[i]) * rule.suffix_weight;
      merged[i] = (a + b) / rule.total;
    }
  } else if (rule.from == From::kNeither) {
    for (int64_t i = 0; i < count; ++i) merged[i] = 0;
  } else {
    const T* side = rule.from == From::kPrefix ? prefix : suffix;
    for (int64_t i = 0; i < count; ++i) merged[i] = widen(side[i]);
  }
  write_merged<T>(p, to, merged, count);
}

template <FloatElement T>
void merge_head(const MergeAttnStatesParams& p, int64_t token, int64_t head) {
  const float suffix_lse = *p.suffix.lse.at(head, token);
  const MergeRule rule = rule_of(*p.prefix.lse.at(head, token), suffix_lse, token < p.num_merged_tokens);
  char* to = p.output.head(token, head);
  const auto* prefix = reinterpret_cast<const T*>(p.prefix.output.head(token, head));
  const auto* suffix = reinterpret_cast<const T*>(p.suffix.output.head(token, head));
  const bool is_copied = rule.from == MergeRule::From::kPrefix || rule.from == MergeRule::From::kSuffix;
  if (is_copied && p.codec.is_float()) {
    std::memmove(to, rule.from == MergeRule::From::kPrefix ? prefix : suffix, p.head_size * sizeof(T));
  } else {
    for (int64_t i = 0; i < p.head_size; i += kMergeChunk) {
      const int64_t count = p.head_size - i < kMergeChunk ? p.head_size - i : kMergeChunk;
      merge_elements(p, rule, to + p.codec.num_bytes(i), prefix + i, suffix + i, count);
    }
  }
  if (p.output_lse.is_given()) *p.output_lse.at(head, token) = rule.lse;
}

}  // namespace
}  // namespace multikv::cpu
