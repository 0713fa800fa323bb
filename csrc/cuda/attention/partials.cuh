// The results of granules that wait in the workspace for being joined.
//
// The workspace holds one slot for each unit (schedule.cuh), and a slot has three parts, each in an array of its own:
//
//   counter   how many thread blocks have written all their partial results of the tile that begins at this unit
//   states    m and l of each row
//   outputs   o of each row, value_size floats
//
// A counter holds (nonce << 16 | count). The content of the workspace before a launch is arbitrary: a counter with
// another nonce counts as 0. The last thread block resets the counter, because a captured launch repeats its nonce.
#pragma once

#include "cuda/attention/numbers.cuh"
#include "cuda/attention/schedule.cuh"

namespace multikv::gpu {

class Partials {
 public:
  static constexpr int64_t bytes_per_slot(int64_t slot_rows, int64_t value_size) {
    return 8 + slot_rows * (2 + value_size) * 4;
  }
  __device__ explicit Partials(const AttentionProblem& p)
      : counters_(reinterpret_cast<unsigned long long*>(p.workspace.data)),
        states_(reinterpret_cast<float2*>(p.workspace.data + p.num_slots * 8)),
        outputs_(reinterpret_cast<float*>(states_ + p.num_slots * p.slot_rows)), rows_(p.slot_rows),
        value_size_(p.value_size) {}

  __device__ float2* state(int64_t slot, int row) const { return states_ + slot * rows_ + row; }
  __device__ float* output(int64_t slot, int row) const { return outputs_ + (slot * rows_ + row) * value_size_; }

  // Counts one more thread block. Returns whether it was the last of `expected`. One thread calls it.
  __device__ bool arrive(int64_t slot, uint64_t nonce, int64_t expected) const {
    unsigned long long* counter = counters_ + slot;
    unsigned long long seen = *static_cast<volatile unsigned long long*>(counter);
    while (true) {
      const int64_t count = (seen >> 16 == nonce ? static_cast<int64_t>(seen & 0xffff) : 0) + 1;
      const unsigned long long next = count == expected ? 0 : nonce << 16 | static_cast<unsigned long long>(count);
      const unsigned long long found = atomicCAS(counter, seen, next);
      if (found == seen) return count == expected;
      seen = found;
    }
  }

 private:
  unsigned long long* counters_;
  float2* states_;
  float* outputs_;
  int64_t rows_;
  int value_size_;
};

// The partial results of one tile, in ascending order of their granules: that of the thread block that has the tile's
// first unit, which it has joined; then one for each granule.
struct PartialList {
  int64_t first_slot;
  int64_t next_slot, end_slot;  // of the others

  __device__ PartialList(const Segment& segment, const Shares& shares) : first_slot(segment.tile_unit) {
    const Range visible = intersection(segment.tile_granules, granules_of(segment.visible.any));
    const int64_t joined_end = shares.begin(shares.block_of(first_slot) + 1);
    next_slot = max(joined_end, first_slot + visible.begin - segment.tile_granules.begin);
    end_slot = first_slot + visible.end - segment.tile_granules.begin;
  }
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
    sequence_token = static_cast<int>(quotient_of(sequence_row, p.group));
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

// Joins the partial results of a tile. All threads of the thread block call it, after the last arrival.
__device__ inline void join_partials(const AttentionProblem& p, const Segment& segment, const Shares& shares) {
  constexpr int kBatch = 8;  // partial results that are loaded at a time
  const Partials partials(p);
  const PartialList list(segment, shares);
  const int columns = p.value_size, elements = segment.num_rows * columns;
  for (int element = threadIdx.x; element < elements; element += blockDim.x) {
    const int row = element / columns, column = element - row * columns;
    const float2 first = load_coherent(partials.state(list.first_slot, row));
    float m = first.x, l = first.y, o = load_coherent(partials.output(list.first_slot, row) + column);
    for (int64_t begin = list.next_slot; begin < list.end_slot; begin += kBatch) {
      float2 states[kBatch];
      float outputs[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t slot = min(begin + i, list.end_slot - 1);
        states[i] = load_coherent(partials.state(slot, row));
        outputs[i] = load_coherent(partials.output(slot, row) + column);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const JoinWeights weights = join(m, l, states[i].x, begin + i < list.end_slot ? states[i].y : 0.0f);
        o = joined(weights, o, outputs[i]);
        m = weights.m;
        l = weights.l;
      }
    }
    const RowOwner owner(p, segment, row);
    const Finish result = finish_row(p, segment, owner, m, l);
    store_output(p, owner.token, owner.head, column, result.is_empty ? 0.0f : __fmul_rn(o, result.factor));
    if (column == 0) store_lse(p, owner, result);
  }
}

}  // namespace multikv::gpu
