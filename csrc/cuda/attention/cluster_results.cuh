// The results of granules in the registers of the cluster kernel, and how they are joined and written.
#pragma once

#include "cuda/attention/cluster_shared.cuh"

namespace multikv::gpu {

// The calling thread's part of the results of a granule, and of all granules so far. All threads call all functions.
template <class Store, int kHeadSize, int kRows>
class ClusterResults {
  using Shape = ClusterShape<Store, kHeadSize>;
  static constexpr int kRowTiles = kRows / 8, kColumnTiles = Shape::kColumnTiles;

 public:
  float o[kRowTiles][kColumnTiles][4];  // of the granule
  float2 states[kRowTiles];             // m and l of the granule, for row group_ of each tile

  __device__ ClusterResults()
      : warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), group_(lane_ / 4), pair_(lane_ % 4 * 2) {
    for (float2& state : total_states_) state = {0.0f, 0.0f};
    for_each_output([&](int tile, int columns, int i) { totals_[tile][columns][i] = 0.0f; });
  }

  // Element i of o[tile][columns] is that of row 8 * tile + pair_ + i % 2 and column column_of(columns, i).
  __device__ int column_of(int columns, int i) const {
    const int first = warp_ * Shape::kSliceColumns + 16 * columns;
    return Store::kIsFp8 ? first + 2 * group_ + i / 2 : first + group_ + i / 2 * 8;
  }
  template <class Visit>
  __device__ static void for_each_output(Visit visit) {
#pragma unroll
    for (int i = 0; i < kRowTiles * kColumnTiles * 4; ++i) visit(i / (4 * kColumnTiles), i / 4 % kColumnTiles, i % 4);
  }

  // Calls visit(i, number) for the numbers of the granule's result that this thread holds.
  template <class Visit>
  __device__ void for_each_number(Visit visit) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      visit(2 * tile, states[tile].x);
      visit(2 * tile + 1, states[tile].y);
    }
    for_each_output([&](int tile, int columns, int i) {
      visit(2 * kRowTiles + 4 * (tile * kColumnTiles + columns) + i, o[tile][columns][i]);
    });
  }

  // Joins the granule's result to the result of the granules before.
  __device__ void join() {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      float2& total = total_states_[tile];
      const JoinWeights weights = gpu::join(total.x, total.y, states[tile].x, states[tile].y);
      total = {weights.m, weights.l};
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const float first = of_row(weights.first, high);
        const float second = of_row(weights.is_first ? -1.0f : weights.second, high);
        if (second < 0.0f) continue;
#pragma unroll
        for (int i = high; i < 4 * kColumnTiles; i += 2) {
          float& sum = totals_[tile][i / 4][i % 4];
          sum = __fmaf_rn(sum, first, __fmul_rn(o[tile][i / 4][i % 4], second));
        }
      }
    }
  }

  // Writes out and lse.
  __device__ void store_outputs(const AttentionProblem& p, const Segment& segment) const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const int own_row = 8 * tile + group_;
      Finish own = {};
      if (own_row < segment.num_rows) {
        const RowOwner owner(p, segment, own_row);
        own = finish_row(p, segment, owner, total_states_[tile].x, total_states_[tile].y);
        if (warp_ == 0 && pair_ == 0) store_lse(p, owner, own);
      }
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const float factor = of_row(own.factor, high);
        const bool is_empty = of_row(own.is_empty ? 1.0f : 0.0f, high) != 0.0f;
        const int row = 8 * tile + pair_ + high;
        if (row >= segment.num_rows) continue;
        const RowOwner owner(p, segment, row);
#pragma unroll
        for (int i = high; i < 4 * kColumnTiles; i += 2) {
          const int column = column_of(i / 4, i % 4);
          const float value = is_empty ? 0.0f : __fmul_rn(totals_[tile][i / 4][i % 4], factor);
          if (column < p.value_size) store_output(p, owner.token, owner.head, column, value);
        }
      }
    }
  }

 private:
  // Each lane passes a number of row group_ of a tile. Returns the same number of row pair_ + i.
  __device__ float of_row(float state, int i) const { return shuffle(state, 4 * (pair_ + i)); }

  const int warp_, lane_, group_, pair_;
  // The results of all granules so far, in the order of o and states.
  float totals_[kRowTiles][kColumnTiles][4];
  float2 total_states_[kRowTiles];
};

}  // namespace multikv::gpu
