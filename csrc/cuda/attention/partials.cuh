// The results of granules that wait in the workspace to be joined.
//
// The workspace holds one slot for each unit (schedule.cuh), and a slot has two parts, each in an array of its own:
//
//   outputs   o of each row, value_size floats
//   states    m and l of each row
#pragma once

#include "cuda/attention/numbers.cuh"
#include "cuda/attention/schedule.cuh"
#include "vendor/matrix.cuh"

namespace multikv::gpu {

class Partials {
 public:
  static constexpr int64_t bytes_per_slot(int64_t slot_rows, int64_t value_size) {
    return slot_rows * (2 + value_size) * 4;
  }
  __device__ explicit Partials(const AttentionProblem& p)
      : outputs_(reinterpret_cast<float*>(p.workspace.data)),
        states_(outputs_ + p.num_slots * p.slot_rows * p.value_size), rows_(p.slot_rows), value_size_(p.value_size) {}

  __device__ float* output(int64_t slot, int row) const { return outputs_ + (slot * rows_ + row) * value_size_; }
  // x is m, y is l. Their addresses may be odd multiples of 4 bytes.
  __device__ float2 state(int64_t slot, int row) const {
    const float* from = states_ + 2 * (slot * rows_ + row);
    return {from[0], from[1]};
  }
  __device__ void store_state(int64_t slot, int row, float2 state) const {
    float* to = states_ + 2 * (slot * rows_ + row);
    to[0] = state.x;
    to[1] = state.y;
  }

 private:
  float *outputs_, *states_;
  int64_t rows_;
  int value_size_;
};

// The partial results of one tile, in ascending order of their granules. The first one is the joined result of the
// granules that the worker with the tile's first unit has attended over. Each of the others is the result of one
// granule.
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

// Writes kCount neighbouring elements of out, from `column` on, which is a multiple of kCount.
template <int kCount>
__device__ inline void store_outputs(const AttentionProblem& p, int64_t token, int64_t head, int column,
                                     const float (&values)[kCount]) {
  if (p.has_out_vectors && p.dtype != Float::kFloat32) {
    Pack<2 * kCount> pack;
    for (int i = 0; i < kCount; i += 2) {
      pack.words[i / 2] = p.dtype == Float::kFloat16 ? floats_to_half(values[i], values[i + 1])
                                                     : floats_to_bfloat16(values[i], values[i + 1]);
    }
    pack.write(p.out.head(token, head) + column * 2);
    return;
  }
  for (int i = 0; i < kCount && column + i < p.value_size; ++i) store_output(p, token, head, column + i, values[i]);
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

// An element of a value, which must be in a valid block.
template <class Store>
__device__ inline float cached_value(const AttentionProblem& p, const Segment& segment, int key, int column) {
  const CacheSource& cache = p.value;
  const int in_table = small_quotient(key, p.blocks.block_size);
  const int slot = key - in_table * static_cast<int>(p.blocks.block_size.value);
  const int slot_group = small_quotient(slot, cache.slots_per_group);
  const int group = small_quotient(column, cache.elements_per_group);
  const char* from = cache.data +
                     p.sequences.block_table.at(segment.sequence_index, in_table) * cache.stride_block_bytes +
                     segment.kv_head * cache.stride_head_bytes + slot_group * cache.stride_slot_group_bytes +
                     (slot - slot_group * cache.slots_per_group.signed_value()) * cache.stride_slot_bytes +
                     group * cache.stride_element_group_bytes +
                     (column - group * cache.elements_per_group.signed_value()) * cache.stride_element_bytes;
  if constexpr (Store::kIsFp8) {
    return half_to_float(
        static_cast<uint16_t>(halves_from_fp8<Store::kElement>(*reinterpret_cast<const uint8_t*>(from))));
  } else {
    return load_float16(*reinterpret_cast<const uint16_t*>(from), Store::kProduct);
  }
}

}  // namespace multikv::gpu
