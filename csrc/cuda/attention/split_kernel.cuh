// Attention of few query rows over many keys (decoding), which is bound by memory bandwidth. A thread block is a
// worker. Its warps load keys and values into registers, in the order of matrix operands; only caches without vectors
// are staged in shared memory. The warps divide the keys of a step for the scores, and the columns of its values for
// the output. Scores pass from warp to warp through shared memory.
//
// Products are transposed, so that 8 query rows suffice for a matrix instruction: scores^T = keys * queries^T, and
// outputs^T = values^T * weights^T.
#pragma once

#include "cuda/attention/split_shared.cuh"
#include "cuda/attention/step_loader.cuh"
#include "vendor/launch_early.cuh"

namespace multikv::gpu {

template <class Store, int kHeadSize, int kRows, bool kHasVectors>
class SplitAttention {
  using Shape = SplitShape<Store, kHeadSize>;
  using Shared = SplitShared<Store, kHeadSize, kRows>;
  static constexpr int kRowTiles = kRows / 8, kKeyTiles = Shape::kKeyTiles, kColumnTiles = Shape::kLaneColumns / 2;

 public:
  __device__ SplitAttention(const AttentionProblem& p, Shared& shared, char* staging)
      : p_(p), shared_(shared), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32), group_(lane_ / 4),
        pair_(lane_ % 4 * 2), loader_(p, shared.segment, staging + warp_ * Shape::kStagingBytes) {}

  // Attends over all granules of the thread block's share.
  __device__ void run(const WorkStart& start) {
    if (threadIdx.x == 0) shared_.segments.start(p_, start);
    while (true) {
      __syncthreads();  // all threads have finished with the previous segment
      if (threadIdx.x == 0) shared_.is_done = !shared_.segments.take(p_, shared_.segment);
      __syncthreads();
      if (shared_.is_done) return;
      attend(shared_.segment);
    }
  }

 private:
  // Attends over the granules of a segment. A round of the loop attends over the step at `key`, and starts the loads of
  // the next step. The first round only starts loads: it is one step before the first key.
  __device__ void attend(const Segment& segment) {
    begin(segment);
    const Range keys = segment.keys();
    const bool is_first = segment.granules.begin == segment.tile_granules.begin;
    const int rounds_begin = keys.size() == 0 ? keys.end : keys.begin - kStep;
#pragma unroll 1
    for (int key = rounds_begin; key < keys.end; key += kStep) {
      const bool has_step = key >= keys.begin, has_next = key + kStep < keys.end;
      step(segment, key, has_step, has_next);
      if (has_step && (!has_next || (key + kStep) % kGranule == 0)) end_granule(segment, key, is_first);
    }
    if (!is_first) return;
    load_totals();
    if (segment.is_whole) store_outputs(segment);
    else store_partial(segment, segment.tile_unit, true);
  }

  __device__ void end_granule(const Segment& segment, int key, bool is_first) {
    if (is_first) join_granule();
    else store_partial(segment, segment.tile_unit + key / kGranule - segment.tile_granules.begin, false);
    clear();
  }

  // Looks up the first keys, and loads the queries.
  __device__ void begin(const Segment& segment) {
    loader_.start();
    scoring_ = Scoring::of(p_.options, scale_of(p_.key, segment.kv_head));
#pragma unroll 1
    for (int tile = warp_; tile < kRowTiles; tile += Shape::kWarps) {
      const int row = 8 * tile + group_;
      QueryOperands<kHeadSize> query;
      const float power = load_query<Store, kHeadSize>(query, p_, segment, row);
#pragma unroll
      for (int i = 0; i < kHeadSize / 16; ++i) shared_.queries[tile][i][lane_] = {query[i][0], query[i][1]};
      if (pair_ == 0) shared_.rows[row] = tile_row(p_, segment, scoring_, row, power);
    }
    if (lane_ < kRows) shared_.total_states[warp_][lane_] = {0.0f, 0.0f};
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) factors_[tile] = shared_.rows[8 * tile + group_].factor;
    for_each_output([&](int tile, int columns, int i) { total(tile, columns, i) = 0.0f; });
    clear();
  }

  // Element i of o_[tile][columns] is that of row 8 * tile + pair_ + i % 2 and column column_of(columns, i).
  using Outputs = float[kRowTiles][kColumnTiles][4];
  __device__ int column_of(int columns, int i) const {
    return warp_ * Shape::kSliceColumns + group_ * Shape::kLaneColumns + 2 * columns + i / 2;
  }
  template <class Visit>
  __device__ static void for_each_output(Visit visit) {
#pragma unroll
    for (int i = 0; i < kRowTiles * kColumnTiles * 4; ++i) visit(i / (4 * kColumnTiles), i / 4 % kColumnTiles, i % 4);
  }
  __device__ float& total(int tile, int columns, int i) const { return shared_.totals[tile][columns][i][threadIdx.x]; }

  __device__ void clear() {
#pragma unroll
    for (auto& sums : sums_) sums = RowSums{};
    for_each_output([&](int tile, int columns, int i) { o_[tile][columns][i] = 0.0f; });
  }

  __device__ void step(const Segment& segment, int key, bool has_step, bool has_next) {
    const Range keys = {key, key + kStep}, all = intersection(keys, segment.visible.all);
    float(&scores)[kRows][Shared::kPitch] = shared_.scores[key / kStep & 1];
    const uint64_t valid = shared_.valid[key / kStep & 3];  // not used unless has_step
    if (has_step) store_scores(scores, key, all.size() < kStep || valid != ~uint64_t{0});
    if (has_next) {
      const uint64_t next_valid = loader_.locate(key + kStep);
      if (threadIdx.x == 0) shared_.valid[(key / kStep + 1) % 4] = next_valid;
      loader_.load_keys();
    }
    __syncthreads();
    if (has_step) {
      TransposedOperands weights[kRowTiles];
      weigh(scores, weights);
      if (valid != ~uint64_t{0}) loader_.clear_values(valid);
      if (all.size() < intersection(keys, segment.visible.any).size() && has_specials()) {
        take_specials(scores, segment, key);
      }
      add_values(weights);
    }
    if (has_next) loader_.load_values();
  }

  // Computes the scores of the warp's keys.
  __device__ void store_scores(float (&scores)[kRows][Shared::kPitch], int key, bool is_partial) {
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      float products[kRowTiles][4] = {};
      multiply_keys(products, loader_.keys[tile]);
      const int first = warp_ * Shape::kWarpKeys + 16 * tile + group_;
      if (!scoring_.is_plain) score(products, key + first);
      if (is_partial) hide_keys(products, key, first);
#pragma unroll
      for (int i = 0; i < 4 * kRowTiles; ++i) {
        scores[8 * (i / 4) + pair_ + i % 2][first + i % 4 / 2 * 8] = products[i / 4][i % 4];
      }
    }
  }

  using Chunks = typename StepLoader<Store, kHeadSize, kHasVectors>::Chunk[2][Shape::kChunkGroups];
  __device__ void multiply_keys(float (&products)[kRowTiles][4], const Chunks& chunks) const {
    constexpr int kSteps = kChunkSteps<Store>;
#pragma unroll
    for (int i = 0; i < kHeadSize / 16; ++i) {
      uint32_t low[2], high[2];
      key_operand<Store>(low, chunks[0][i / kSteps], i % kSteps);
      key_operand<Store>(high, chunks[1][i / kSteps], i % kSteps);
      const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const uint2 query = shared_.queries[tile][i][lane_];
        multiply_add<Store::kProduct>(products[tile], a, query.x, query.y);
      }
    }
  }

  __device__ void score(float (&products)[kRowTiles][4], int key) const {
#pragma unroll
    for (int i = 0; i < 4 * kRowTiles; ++i) {
      const TileRow& row = shared_.rows[8 * (i / 4) + pair_ + i % 2];
      float& x = products[i / 4][i % 4];
      x = scoring_(x, row.coefficient, row.slope, key + i % 4 / 2 * 8 - row.visible.position);
    }
  }

  __device__ bool is_valid(int key, int step_key) const {
    return (shared_.valid[key / kStep % 4] >> step_key & 1) != 0;
  }

  // Replaces the scores of keys that the rows of the scores do not see.
  __device__ void hide_keys(float (&scores)[kRowTiles][4], int key, int first) const {
    uint32_t seen = 0;  // bit i: whether the row of score i sees the key of score i
#pragma unroll 1
    for (int i = 0; i < 4 * kRowTiles; ++i) {
      const int step_key = first + i % 4 / 2 * 8, row = 8 * (i / 4) + pair_ + i % 2;
      if (is_valid(key, step_key) && shared_.rows[row].visible.sees(key + step_key)) seen |= 1u << i;
    }
#pragma unroll
    for (int i = 0; i < 4 * kRowTiles; ++i) {
      if ((seen >> i & 1) == 0) scores[i / 4][i % 4] = kNoScore;
    }
  }

  // Turns the scores of a step into weights. Every warp does so for all rows.
  __device__ void weigh(const float (&scores)[kRows][Shared::kPitch], TransposedOperands (&weights)[kRowTiles]) {
    float corrections[kRowTiles];
    bool is_corrected = false;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      float row[kStep / 4];
#pragma unroll
      for (int i = 0; i < kStep / 8; ++i) {
        const auto two = *reinterpret_cast<const float2*>(&scores[8 * tile + group_][8 * i + pair_]);
        row[2 * i] = two.x;
        row[2 * i + 1] = two.y;
      }
      corrections[tile] = sums_[tile].template add<Store>([&](int i) -> float& { return row[i]; }, factors_[tile]);
      is_corrected = is_corrected || corrections[tile] != 1.0f;
#pragma unroll
      for (int i = 0; i < kStep / 8; ++i)
        weights[tile][i / 2][i % 2] = rounded<Store::kProduct>(row[2 * i], row[2 * i + 1]);
    }
    if (ballot(is_corrected) == 0) return;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const float factors[2] = {of_row(corrections[tile], 0), of_row(corrections[tile], 1)};
#pragma unroll
      for (int i = 0; i < 4 * kColumnTiles; ++i)
        o_[tile][i / 4][i % 4] = __fmul_rn(o_[tile][i / 4][i % 4], factors[i % 2]);
    }
  }
  // Each lane passes a number of row group_ of a tile. Returns the same number of row pair_ + i.
  __device__ float of_row(float state, int i) const { return shuffle(state, 4 * (pair_ + i)); }

  __device__ void add_values(const TransposedOperands (&weights)[kRowTiles]) {
#pragma unroll
    for (int step = 0; step < kStep / 16; ++step) {
#pragma unroll
      for (int columns = 0; columns < kColumnTiles; ++columns) {
        uint32_t a[4];
        value_operand<Store>(a, loader_.values[step], columns);
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) {
          multiply_add<Store::kProduct>(o_[tile][columns], a, weights[tile][step][0], weights[tile][step][1]);
        }
      }
    }
  }

  // Whether the values of the step hold an infinity or a NaN.
  __device__ bool has_specials() {
    bool found = false;
    loader_.for_each_value([&](uint32_t word) { found = found || has_special_code<Store>(word); });
    return ballot(found) != 0;
  }

  // Adds the infinities and NaN among the values to the rows that see them, and replaces them by 0: rows that see
  // different keys share a matrix instruction, and 0 * NaN is NaN.
  __device__ void take_specials(const float (&scores)[kRows][Shared::kPitch], const Segment& segment, int key) {
    float sums[kRowTiles * kColumnTiles * 4];
#pragma unroll 1
    for (int i = 0; i < kRowTiles * kColumnTiles * 4; ++i) {
      const int tile = i / (4 * kColumnTiles), row = 8 * tile + pair_ + i % 2;
      RowSums state;
      state.m = of_row(tile == 0 ? sums_[0].m : sums_[kRowTiles - 1].m, i % 2);
      sums[i] = sum_specials(scores[row], state, segment, row, key, column_of(i / 4 % kColumnTiles, i % 4));
    }
    for_each_output([&](int tile, int columns, int i) {
      float& o = o_[tile][columns][i];
      o = __fadd_rn(o, sums[(tile * kColumnTiles + columns) * 4 + i]);
    });
    loader_.for_each_value([](uint32_t& word) { word = without_special_codes<Store>(word); });
  }

  // The sum of weight * value over the values of a column that are infinite or NaN and that the row sees.
  __device__ float sum_specials(const float (&scores)[Shared::kPitch], const RowSums& state, const Segment& segment,
                                int row, int key, int column) const {
    float sum = 0.0f;
    if (column >= p_.value_size) return sum;
#pragma unroll 1
    for (int i = 0; i < kStep; ++i) {
      if (!is_valid(key, i) || !shared_.rows[row].visible.sees(key + i)) continue;
      const float value = cached_value<Store>(p_, segment, key + i, column);
      if (fabsf(value) < -kNoScore) continue;
      sum = __fmaf_rn(state.template rounded_weight<Store>(scores[i], shared_.rows[row].factor), value, sum);
    }
    return sum;
  }

  // Joins the granule's result to the result of the granules before.
  __device__ void join_granule() {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      float2& total_state = shared_.total_states[warp_][8 * tile + group_];
      const float2 state = sums_[tile].template total<Store>(), before = total_state;
      const JoinWeights weights = join(before.x, before.y, state.x, state.y);
      sync_warp();  // all lanes have read the previous states
      if (pair_ == 0) total_state = {weights.m, weights.l};
      sync_warp();
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const float first = of_row(weights.first, high);
        const float second = of_row(weights.is_first ? -1.0f : weights.second, high);
        if (second < 0.0f) continue;
#pragma unroll
        for (int i = 0; i < 2 * kColumnTiles; ++i) {
          float& o = total(tile, i / 2, i % 2 * 2 + high);
          o = __fmaf_rn(o, first, __fmul_rn(o_[tile][i / 2][i % 2 * 2 + high], second));
        }
      }
    }
  }

  // Copies the output of all granules so far to o_.
  __device__ void load_totals() {
    for_each_output([&](int tile, int columns, int i) { o_[tile][columns][i] = total(tile, columns, i); });
  }

  // Writes the result of one granule, or of all granules so far, to the workspace.
  __device__ void store_partial(const Segment& segment, int64_t slot, bool is_total) const {
    const Partials partials(p_);
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const float2 state =
          is_total ? shared_.total_states[warp_][8 * tile + group_] : sums_[tile].template total<Store>();
      const int own_row = 8 * tile + group_;
      if (warp_ == 0 && pair_ == 0 && own_row < segment.num_rows) partials.store_state(slot, own_row, state);
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int row = 8 * tile + pair_ + high;
        if (row >= segment.num_rows) continue;
        float* to = partials.output(slot, row);
        for_each_quad(o_[tile], high, [&](int column, const float4& quad) {
          if (p_.value_size % 4 == 0) {
            *reinterpret_cast<float4*>(to + column) = quad;
          } else {
            const float elements[4] = {quad.x, quad.y, quad.z, quad.w};
            for (int i = 0; i < 4 && column + i < p_.value_size; ++i) to[column + i] = elements[i];
          }
        });
      }
    }
  }

  // Calls visit(column, outputs of four columns) for the columns of one of the lane's two rows.
  template <class Visit>
  __device__ void for_each_quad(const float (&outputs)[kColumnTiles][4], int high, Visit visit) const {
#pragma unroll
    for (int columns = 0; columns < kColumnTiles; columns += 2) {
      const int column = column_of(columns, 0);
      if (column >= p_.value_size) continue;
      const auto &first = outputs[columns], &second = outputs[columns + 1];
      visit(column, float4{first[high], first[2 + high], second[high], second[2 + high]});
    }
  }

  // Writes out and lse.
  __device__ void store_outputs(const Segment& segment) const {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const int own_row = 8 * tile + group_;
      Finish own = {};
      if (own_row < segment.num_rows) {
        const RowOwner owner(p_, segment, own_row);
        const float2 state = shared_.total_states[warp_][own_row];
        own = finish_row(p_, segment, owner, state.x, state.y);
        if (warp_ == 0 && pair_ == 0) store_lse(p_, owner, own);
      }
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const float factor = of_row(own.factor, high);
        const bool is_empty = of_row(own.is_empty ? 1.0f : 0.0f, high) != 0.0f;
        const int row = 8 * tile + pair_ + high;
        if (row >= segment.num_rows) continue;
        const RowOwner owner(p_, segment, row);
        for_each_quad(o_[tile], high, [&](int column, const float4& quad) {
          float elements[4] = {quad.x, quad.y, quad.z, quad.w};
          for (float& x : elements) x = is_empty ? 0.0f : __fmul_rn(x, factor);
          gpu::store_outputs(p_, owner.token, owner.head, column, elements);
        });
      }
    }
  }

  const AttentionProblem& p_;
  Scoring scoring_;
  Shared& shared_;
  const int warp_, lane_, group_, pair_;
  StepLoader<Store, kHeadSize, kHasVectors> loader_;
  float factors_[kRowTiles];  // of row group_ of each tile
  Outputs o_;
  RowSums sums_[kRowTiles];  // of row group_ of each tile
};

// The warps that a multiprocessor holds: as many as registers allow.
template <class Store, int kHeadSize, int kRows>
inline constexpr int kSplitWarps = SplitShape<Store, kHeadSize>::kSliceBytes > 64 ? 8
                                   : kRows > 8 || Store::kIsFp8                   ? 12
                                                                                  : 16;
template <class Store, int kHeadSize, int kRows>
inline constexpr int kSplitBlocks = kSplitWarps<Store, kHeadSize, kRows> / SplitShape<Store, kHeadSize>::kWarps;

template <class Store, int kHeadSize, int kRows, bool kHasVectors>
__global__ void MULTIKV_LAUNCH_BOUNDS((SplitShape<Store, kHeadSize>::kThreads), (kSplitBlocks<Store, kHeadSize, kRows>))
    split_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p) {
  __shared__ SplitShared<Store, kHeadSize, kRows> shared;
  extern __shared__ __align__(16) char staging[];
  allow_next_launch();
  const WorkStart& start = find_start<SplitTiles>(p, blockIdx.x, gridDim.x);
  if (!start.is_idle()) SplitAttention<Store, kHeadSize, kRows, kHasVectors>(p, shared, staging).run(start);
}

}  // namespace multikv::gpu
