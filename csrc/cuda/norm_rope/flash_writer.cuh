// Writes normed and rotated heads to query.out, to key.out and to caches of the flash layout.
#pragma once

#include "cuda/cache/slots.cuh"
#include "cuda/cache/vector_move.cuh"
#include "cuda/norm_rope/head_groups.cuh"

namespace multikv::gpu {

// Writes the heads of a part, token by token: `count` (at most kHeads) neighbouring heads from first_head on. A lane
// has two vectors of each head. Addresses are carried from token to token.
template <class Head, int kHeads>
class FlashWriter {
  static constexpr Float kDtype = Head::kDtype;

 public:
  __device__ __forceinline__ FlashWriter(const HeadGroups& groups, const TokenHeads& key_out, const TokenPart& part,
                                         int count, const LaneVectors& lane)
      : groups_(groups), key_out_(key_out), side_(groups.side(part)), count_(count), lane_(lane) {
    const int element_bytes = is_float(side_.element) ? static_cast<int>(num_bytes(kDtype)) : 1;
    to_ = side_.to + part.index * kHeads * side_.to_head_bytes + part.token * side_.to_token_bytes +
          lane.dims[0] * element_bytes;
    half_bytes_ = (lane.dims[1] - lane.dims[0]) * element_bytes;
  }
  // Goes to the next token.
  __device__ __forceinline__ void advance() { to_ += side_.to_token_bytes; }
  // Writes the heads of part.token. Queries do not need a slot. scale(h) returns the scale of head h.
  template <class Scale>
  __device__ __forceinline__ void write(const TokenPart& part, int64_t slot, const Head (&heads)[kHeads],
                                        Scale scale) const {
    if (part.kind == HeadKind::kKey && key_out_.data != nullptr) write_key(part, heads);
    char* to = to_;
    if (!part.is_query()) {
      if (!is_slot(groups_.blocks, slot)) return;
      const BlockOffset at = split(groups_.blocks, slot);
      to += at.block * side_.to_block_bytes + at.offset * side_.to_slot_bytes;
    }
    if (is_float(side_.element)) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (h < count_) store(to + h * side_.to_head_bytes, half_bytes_, heads[h].vectors);
      }
    } else {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        const Quantise<kDtype, Head::kElements> quantise(scale(h), side_.element);
        const Pack<Head::kElements> codes[2] = {quantise(heads[h].vectors[0]), quantise(heads[h].vectors[1])};
        if (h < count_) store(to + h * side_.to_head_bytes, half_bytes_, codes);
      }
    }
  }

 private:
  __device__ __forceinline__ void write_key(const TokenPart& part, const Head (&heads)[kHeads]) const {
    constexpr int kBytes = static_cast<int>(num_bytes(kDtype));
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h < count_)
        store(key_out_.head(part.token, part.index * kHeads + h) + lane_.dims[0] * kBytes,
              (lane_.dims[1] - lane_.dims[0]) * kBytes, heads[h].vectors);
    }
  }
  template <class Vector>
  __device__ __forceinline__ void store(char* to, int half_bytes, const Vector (&vectors)[2]) const {
    if (lane_.exists[0]) vectors[0].template write<true>(to);
    if (lane_.exists[1]) vectors[1].template write<true>(to + half_bytes);
  }

  const HeadGroups& groups_;
  const TokenHeads& key_out_;
  const HeadSide& side_;
  int count_;
  LaneVectors lane_;
  char* to_;        // vector 0 of the first head: of the token in query.out, or of slot 0
  int half_bytes_;  // from vector 0 to vector 1
};

}  // namespace multikv::gpu
