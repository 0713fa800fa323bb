// The results of granules that wait in the workspace for being joined.
//
// The workspace holds one slot for each unit (schedule.cuh), and a slot has two parts, each in an array of its own:
//
//   states    m and l of each row
//   outputs   o of each row, value_size floats
#pragma once

#include "cuda/attention/numbers.cuh"
#include "cuda/attention/schedule.cuh"

namespace multikv::gpu {

class Partials {
 public:
  static constexpr int64_t bytes_per_slot(int64_t slot_rows, int64_t value_size) {
    return slot_rows * (2 + value_size) * 4;
  }
  __device__ explicit Partials(const AttentionProblem& p)
      : states_(reinterpret_cast<float2*>(p.workspace.data)),
        outputs_(reinterpret_cast<float*>(states_ + p.num_slots * p.slot_rows)), rows_(p.slot_rows),
        value_size_(p.value_size) {}

  __device__ float2* state(int64_t slot, int row) const { return states_ + slot * rows_ + row; }
  __device__ float* output(int64_t slot, int row) const { return outputs_ + (slot * rows_ + row) * value_size_; }

 private:
  float2* states_;
  float* outputs_;
  int64_t rows_;
  int value_size_;
};

// The partial results of one tile, in ascending order of their granules: that of the worker that has the tile's first
// unit, which it has joined; then one for each granule.
struct PartialList {
  int64_t first_slot;
  int64_t next_slot, end_slot;  // of the others

  __device__ PartialList(const Segment& segment, const Shares& shares) : first_slot(segment.tile_unit) {
    const Range visible = intersection(segment.tile_granules, granules_of(segment.visible.any));
    const int64_t joined_end = shares.begin(shares.worker_of(first_slot) + 1);
    next_slot = max(joined_end, first_slot + visible.begin - segment.tile_granules.begin);
    end_slot = max(next_slot, first_slot + visible.end - segment.tile_granules.begin);
  }
  __device__ int64_t size() const { return 1 + end_slot - next_slot; }
  __device__ int64_t slot(int64_t i) const { return i == 0 ? first_slot : next_slot + i - 1; }
};

// Writes an element of out.
__device__ inline void store_output(const AttentionProblem& p, int64_t token, int64_t head, int column, float value) {
  char* to = p.out.head(token, head) + column * (p.dtype == Float::kFloat32 ? 4 : 2);
  if (p.dtype == Float::kFloat32) *reinterpret_cast<float*>(to) = value;
  else if (p.dtype == Float::kFloat16)
    *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(floats_to_half(value, 0));
  else *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>(floats_to_bfloat16(value, 0));
}

// The query token and the query head of a tile's row.
struct RowOwner {
  int64_t token, head;
  int sequence_token;

  __device__ RowOwner(const AttentionProblem& p, const Segment& segment, int row) {
    const int sequence_row = segment.first_row + row;
    sequence_token = small_quotient(sequence_row, p.group);
    token = segment.sequence.first_token + sequence_token;
    head = segment.kv_head * p.group.signed_value() + sequence_row - sequence_token * p.group.signed_value();
  }
};

__device__ inline Finish finish_row(const AttentionProblem& p, const Segment& segment, const RowOwner& owner, float m,
                                    float l) {
  return finish(m, l, sink_of(p.options, owner.head), scale_of(p.value, segment.kv_head));
}

__device__ inline void store_lse(const AttentionProblem& p, const RowOwner& owner, const Finish& result) {
  if (!p.lse.is_given()) return;
  *reinterpret_cast<float*>(p.lse.data + owner.head * p.lse.stride_head_bytes +
                            owner.token * p.lse.stride_token_bytes) = result.lse;
}

}  // namespace multikv::gpu
