// Attention of many query rows (prefill) on Hopper GPUs. The matrix instructions of warpgroups (wgmma) read keys and
// values in shared memory, run beside other instructions, and sum in the same order as those of warps (mma.sync). So
// the results have the same bits as those of split_kernel.cuh.
//
// Thread blocks are persistent: each attends for one tile of query rows after the other. While a warpgroup multiplies
// the weights of a step with its values, it multiplies the queries with the keys of the next step, and computes the
// weights of that step.
#pragma once

#include "cuda/attention/warpgroup_loader.cuh"

namespace multikv::gpu {

template <class Store, int kHeadSize>
class WarpgroupAttention {
  using Shared = WarpgroupShared<kHeadSize>;
  using Tile = SwizzledTile<kHeadSize>;
  static constexpr int kProducts = kHeadSize / 8;
  static constexpr Float kType = Store::kProduct;

 public:
  __device__ WarpgroupAttention(const AttentionProblem& p, Shared& shared)
      : p_(p), shared_(shared), warp_(threadIdx.x / 32 - 4), lane_(threadIdx.x % 32), warpgroup_(warp_ / 4),
        queries_(shuffle(shared_address(shared.queries[warpgroup_]), 0)) {}

  // Attends for all tiles of the thread block.
  __device__ void run() {
    for (int round = 0;; ++round) {
      const int slot = round % 2;
      shared_.has_segment[slot].wait(round / 2 % 2);
      const Segment& segment = shared_.segments[slot];
      if (segment.num_rows == 0) return;
      attend(segment);
      store_outputs(segment);
      sync_warp();  // brings the lanes together again
      shared_.is_segment_free[slot].arrive();
    }
  }

 private:
  using Joins = JoinWeights[2];  // of the lane's two rows

  // The id of the warpgroup's named barrier. Id 0 is that of __syncthreads().
  __device__ int barrier() const { return 1 + warpgroup_; }
  __device__ int row_of(int high) const { return 16 * warp_ + lane_ / 4 + 8 * high; }

  __device__ void attend(const Segment& segment) {
    begin(segment);
    const Range keys = segment.keys();
    const Range own = intersection(keys, {visible_.any.begin / kStep * kStep, visible_.any.end});
    if (own.size() == 0) return skip(keys);
    const int own_end = (own.end + kStep - 1) / kStep * kStep;
    skip({keys.begin, own.begin});
    attend_steps(own.begin, own_end);
    skip({own_end, keys.end});
  }

  // Frees steps that the warpgroup does not need.
  __device__ void skip(Range keys) {
#pragma unroll 1
    for (int key = keys.begin; key < keys.end; key += kStep) {
      wait_for_step();
      free_step();
    }
  }
  __device__ uint32_t stage() const { return step_ % kWarpgroupStages; }
  __device__ void wait_for_step() { shared_.is_loaded[stage()].wait(step_ / kWarpgroupStages % 2); }
  __device__ void free_stage(uint32_t stage) { shared_.is_free[stage].arrive(); }
  __device__ void free_step() {
    free_stage(stage());
    ++step_;
  }

  // Writes the tile's queries and a TileRow for each row to shared memory, and clears the sums.
  __device__ void begin(const Segment& segment) {
    sync_warpgroup(barrier());  // all warps have finished with the previous tile
    const Scoring scoring = Scoring::of(p_.options, scale_of(p_.key, segment.kv_head));
    if (threadIdx.x % kWarpgroupThreads == 0) shared_.scoring[warpgroup_] = scoring;
    QueryOperands<kHeadSize> queries[2];
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(high);
      const float power = load_query<Store, kHeadSize>(queries[high], p_, segment, row);
      const TileRow info = tile_row(p_, segment, scoring, row, power);
      factors_[high] = info.factor;
      if (lane_ % 4 == 0) shared_.rows[row] = info;
    }
#pragma unroll
    for (int i = 0; i < kHeadSize / 8; ++i) {
      const uint32_t offset = place_offset_bytes<kHeadSize>(row_of(i % 2) % kWarpgroupRows, 4 * (i / 2) + lane_ % 4);
      const auto& two = queries[i % 2][i / 2];
      *reinterpret_cast<uint2*>(shared_.queries[warpgroup_] + offset) = {two[0], two[1]};
    }
    publish_to_matrix_instructions();
    sync_warpgroup(barrier());
    const int first_row = kWarpgroupRows * warpgroup_, rows = min(segment.num_rows - first_row, kWarpgroupRows);
    visible_ = {{0, 0}, {0, 0}};
    if (rows > 0) {
      visible_ = visible_to(p_, segment.sequence, RowOwner(p_, segment, first_row).sequence_token,
                            RowOwner(p_, segment, first_row + rows - 1).sequence_token);
    }
    total_state_[0] = total_state_[1] = {0.0f, 0.0f};
    sums_[0] = sums_[1] = RowSums{};
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) total_[i / 4][i % 4] = o_[i / 4][i % 4] = 0.0f;
  }

  // Attends over the steps of keys from `key` to `end`, of which there is at least one. While the values of a step are
  // multiplied, the weights of the next step are computed.
  __device__ void attend_steps(int key, int end) {
    Joins joins;  // of the granule that ended before the step
    joins[0].is_first = joins[1].is_first = true;
    bool adds = false;  // whether o_ already holds products of an earlier step of the granule
    start_scores_of_step();
    wait_for_products<0>();
    pin(scores_);
    weigh(key);
    round_weights();
#pragma unroll 1
    for (; key + kStep < end; key += kStep) {
      const uint32_t stage = this->stage(), values = values_;
      const bool has_specials = has_specials_;
      ++step_;
      start_scores_of_step();
      correct_outputs(adds, joins);
      start_outputs_of(values, has_specials, adds);
      adds = (key + kStep) % kGranule != 0;
      if (!adds) end_granule(joins);
      wait_for_products<1>();
      pin(scores_);
      weigh(key + kStep);
      wait_for_products<0>();
      pin(o_);
      if (has_specials) add_specials(key, stage);
      free_stage(stage);
      round_weights();
    }
    correct_outputs(adds, joins);
    start_outputs_of(values_, has_specials_, adds);
    end_granule(joins);
    wait_for_products<0>();
    pin(o_);
    if (has_specials_) add_specials(key, stage());
    free_step();
    join_granule(joins);
  }

  // Waits for the step, and starts the products of the queries with its keys.
  __device__ void start_scores_of_step() {
    // All lanes have this address already. After a shuffle from lane 0, the compiler knows that it is uniform.
    const uint32_t keys = shuffle(shared_address(shared_.stages[stage()][0]), 0);
    values_ = keys + Tile::kBytes;
    const auto a = TileDescriptor::of(queries_, Tile::kBlockBytes, 0);
    const auto b = TileDescriptor::of(keys, Tile::kBlockBytes, 0);
    wait_for_step();
    begin_products();
#pragma unroll
    for (int i = 0; i < kHeadSize / 16; ++i) {
      const int offset = i / 4 * Tile::kPartBytes + i % 4 * 32;  // a part of the tile holds 4 times 16 elements
      start_scores<kType>(scores_, a + offset, b + offset, i > 0);
    }
    commit_products();
  }
  // Starts the products of the weights with the values. If the values hold an infinity or a NaN, the instructions read
  // zeros instead, and add_specials() adds the products later: in a branch, the instructions would not be asynchronous.
  __device__ void start_outputs_of(uint32_t values, bool has_specials, bool adds) {
    auto b = TileDescriptor::of(values, Tile::kBlockBytes, Tile::kPartBytes);
    if (has_specials) b = TileDescriptor::of(shared_address(shared_.zeros), 0, 0);
    const uint32_t step_bytes = has_specials ? 0 : 16 * Tile::kRowBytes;
    begin_products();
#pragma unroll
    for (int i = 0; i < kStep / 16; ++i) start_outputs<kType>(o_, weights_[i], b + i * step_bytes, adds || i > 0);
    commit_products();
  }

  // Turns the scores of a step into weights.
  __device__ void weigh(int key) {
    const uint64_t valid = *reinterpret_cast<const uint64_t*>(shared_.valid[stage()]);
    const bool is_partial = key < visible_.all.begin || key + kStep > visible_.all.end || valid != ~uint64_t{0};
    const Scoring& scoring = shared_.scoring[warpgroup_];
    if (!scoring.is_plain) {
#pragma unroll
      for (int high = 0; high < 2; ++high) score_row(scores_, high, scoring, shared_.rows[row_of(high)], key);
    }
    if (is_partial) {
#pragma unroll
      for (int high = 0; high < 2; ++high) hide_keys(scores_, high, shared_.rows[row_of(high)].visible, valid, key);
    }
    has_specials_ = is_partial && finds_specials();
    RowSums::add_two<Store>(
        sums_, [&](int high, int i) -> float& { return scores_[i / 2][2 * high + i % 2]; }, factors_, corrections_);
  }
  // Rounds the weights to operands of matrix instructions.
  __device__ void round_weights() {
#pragma unroll
    for (int i = 0; i < kStep / 16; ++i) weights_operand<Store>(weights_[i], scores_, i);
  }

  // Prepares o_ for the products of a step. If the step is the first one of a granule (`adds` is false), joins the
  // granule before to the total. Otherwise multiplies o_ by the corrections of the step.
  __device__ void correct_outputs(bool adds, const Joins& joins) {
    if (!adds) return join_granule(joins);
    if (ballot(corrections_[0] != 1.0f || corrections_[1] != 1.0f) == 0) return;
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[i / 4][i % 4] = __fmul_rn(o_[i / 4][i % 4], corrections_[i / 2 % 2]);
  }

  // Joins the state of the granule to that of the granules before. join_granule() does so for the outputs.
  __device__ void end_granule(Joins& joins) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const float2 state = sums_[high].template total<Store>();
      joins[high] = join(total_state_[high].x, total_state_[high].y, state.x, state.y);
      total_state_[high] = {joins[high].m, joins[high].l};
      sums_[high] = RowSums{};
    }
  }
  __device__ void join_granule(const Joins& joins) {
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) {
      const JoinWeights& join = joins[i / 2 % 2];
      float& total = total_[i / 4][i % 4];
      if (!join.is_first) total = __fmaf_rn(total, join.first, __fmul_rn(o_[i / 4][i % 4], join.second));
    }
  }

  // Whether the step's values hold an infinity or a NaN. Rows that see different keys share a matrix instruction, and
  // 0 * NaN is NaN. So such values are multiplied as 0, and add_specials() adds them to the rows that see them.
  __device__ bool finds_specials() const {
    const char* values = shared_.stages[stage()][1];
    bool found = false;
#pragma unroll 4
    for (int at = threadIdx.x % kWarpgroupThreads * kChunkBytes; at < Tile::kBytes;
         at += kWarpgroupThreads * kChunkBytes) {
      const auto words = *reinterpret_cast<const uint4*>(values + at);
      found = found || has_special<Store>(words.x) || has_special<Store>(words.y) || has_special<Store>(words.z) ||
              has_special<Store>(words.w);
    }
    return any_in_warpgroup(barrier(), found);
  }

  // Adds the products of weights and values of a step whose values hold an infinity or a NaN.
  __device__ void add_specials(int key, uint32_t stage) {
    const char* values = shared_.stages[stage][1];
#pragma unroll
    for (int product = 0; product < kProducts; product += 2) {
#pragma unroll
      for (int i = 0; i < kStep / 16; ++i) {
        uint32_t b[4];
        load_transposed(b, shared_address(values) + Tile::offset_bytes(16 * i + lane_ % 16, product + lane_ / 16));
#pragma unroll
        for (auto& elements : b) elements = without_specials<Store>(elements);
        multiply_add<kType>(o_[product], weights_[i], b[0], b[1]);
        multiply_add<kType>(o_[product + 1], weights_[i], b[2], b[3]);
      }
    }
    uint32_t* words = shared_.scratch[warp_];
    store_weights(words, weights_);
    const uint64_t valid = *reinterpret_cast<const uint64_t*>(shared_.valid[stage]);
    float sums[kProducts * 4];
#pragma unroll 1
    for (int i = 0; i < kProducts * 4; ++i) {
      const int high = i / 2 % 2;
      sums[i] = sum_specials(shared_.rows[row_of(high)].visible, words + (lane_ / 4 + 8 * high) * (kStep / 2), values,
                             i / 4 * 8 + lane_ % 4 * 2 + i % 2, valid, key);
    }
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[i / 4][i % 4] = __fadd_rn(o_[i / 4][i % 4], sums[i]);
  }
  // The sum of weight * value over the values of a column that are infinite or NaN and that the row sees.
  __device__ static float sum_specials(const Visible& visible, const uint32_t* weights, const char* values, int column,
                                       uint64_t valid, int key) {
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < kStep; ++i) {
      const auto bits = *reinterpret_cast<const uint16_t*>(values + Tile::offset_bytes(i, column / 8) + column % 8 * 2);
      const float value = load_float16(bits, kType);
      if (fabsf(value) < -kNoScore || (valid >> i & 1) == 0 || !visible.sees(key + i)) continue;
      const auto weight = static_cast<uint16_t>(weights[i / 2] >> i % 2 * 16);
      sum = __fmaf_rn(load_float16(weight, kType), value, sum);
    }
    return sum;
  }

  __device__ void store_outputs(const Segment& segment) {
    sync_warp();  // all lanes have finished with the scratch memory
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(high);
      Finish result{};
      if (row < segment.num_rows) {
        const RowOwner owner(p_, segment, row);
        result = finish_row(p_, segment, owner, total_state_[high].x, total_state_[high].y);
        if (lane_ % 4 == 0) store_lse(p_, owner, result);
      }
#pragma unroll
      for (int product = 0; product < kProducts; ++product) {
        const float *two = &total_[product][2 * high], factor = result.factor;
        const float first = result.is_empty ? 0.0f : __fmul_rn(two[0], factor);
        const float second = result.is_empty ? 0.0f : __fmul_rn(two[1], factor);
        scratch_chunk(row % 16, product)[lane_ % 4] =
            p_.dtype == Float::kFloat16 ? floats_to_half(first, second) : floats_to_bfloat16(first, second);
      }
    }
    sync_warp();
    // Neighbouring lanes write neighbouring chunks.
    constexpr int kRowsAtOnce = 32 / kProducts;
    const int chunk = lane_ % kProducts;
#pragma unroll 4
    for (int i = lane_ / kProducts; i < 16; i += kRowsAtOnce) {
      if (16 * warp_ + i < segment.num_rows) store_chunk(segment, 16 * warp_ + i, chunk);
    }
  }
  // Returns the scratch memory of 16 bytes of the output of one of the warp's rows.
  __device__ uint32_t* scratch_chunk(int row, int chunk) {
    return &shared_.scratch[warp_][(row * kProducts + (chunk ^ row % 8)) * 4];
  }
  __device__ void store_chunk(const Segment& segment, int row, int chunk) {
    const RowOwner owner(p_, segment, row);
    const uint32_t* words = scratch_chunk(row % 16, chunk);
    char* to = p_.out.head(owner.token, owner.head) + chunk * kChunkBytes;
    if (reinterpret_cast<uintptr_t>(to) % kChunkBytes == 0 && 8 * chunk + 8 <= p_.value_size) {
      *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(words);
      return;
    }
    for (int i = 0; i < 8 && 8 * chunk + i < p_.value_size; ++i) {
      reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
    }
  }

  const AttentionProblem& p_;
  Shared& shared_;
  const int warp_, lane_, warpgroup_;
  const uint32_t queries_;  // shared address
  uint32_t values_;         // shared address of the step's values
  uint32_t step_ = 0;       // counts the steps of all tiles
  TokenGroup visible_;      // to the warpgroup's rows
  float factors_[2];        // of the lane's two rows
  StepScores scores_;
  StepOperands weights_;  // rounded from the scores of a step, before the next step overwrites scores_
  bool has_specials_;     // among the values of the step of scores_
  float corrections_[2];
  float o_[kProducts][4], total_[kProducts][4];  // of the granule, and of the granules before
  RowSums sums_[2];
  float2 total_state_[2];
};

template <class Store, int kHeadSize>
__global__ void MULTIKV_LAUNCH_BOUNDS(kWarpgroupKernelThreads, 1)
    warpgroup_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p) {
  if constexpr (kCompilesWarpgroups) {
    extern __shared__ __align__(1024) char tiles[];
    auto& shared = *reinterpret_cast<WarpgroupShared<kHeadSize>*>(tiles);
    if (threadIdx.x == 0) shared.start();
    for (int i = threadIdx.x; i < static_cast<int>(sizeof(shared.zeros)) / 4; i += blockDim.x) {
      reinterpret_cast<uint32_t*>(shared.zeros)[i] = 0;
    }
    publish_to_matrix_instructions();
    __syncthreads();
    // Threads start with 168 registers. The sum over the three warpgroups stays 3 * 168 = 504.
    constexpr int kLoading = Store::kIsFp8 ? 56 : 40, kAttending = Store::kIsFp8 ? 224 : 232;
    if (threadIdx.x < kWarpgroupThreads) {
      release_registers<kLoading>();
      WarpgroupLoader<Store, kHeadSize>(p, shared).run();
    } else {
      take_registers<kAttending>();
      WarpgroupAttention<Store, kHeadSize>(p, shared).run();
    }
  }
}

}  // namespace multikv::gpu
