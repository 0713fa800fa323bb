// Attention of many query rows (prefill), with matrix instructions. Each warp of a thread block attends for 16 rows,
// and all warps share the keys and values in shared memory. The results have the same bits as those of
// split_kernel.cuh.
#pragma once

#include "cuda/attention/tile_rows.cuh"

namespace multikv::gpu {

inline constexpr int kPrefillWarps = 8, kPrefillThreads = 32 * kPrefillWarps, kPrefillRows = 16 * kPrefillWarps;

template <int kHeadSize>
struct PrefillShared {
  float4 totals[kHeadSize / 8][kPrefillThreads];    // o of the granules so far; each thread has its own elements
  uint32_t weights[kPrefillWarps][16 * kStep / 2];  // for add_specials()
  TileRow rows[kPrefillRows];
  LoaderState loader;
  Segment segment;
};

template <class Store, int kHeadSize>
class PrefillAttention {
  using Shared = PrefillShared<kHeadSize>;
  using Loader = TileLoader<Store, kHeadSize, kPrefillThreads>;
  static constexpr int kProducts = kHeadSize / 8;

 public:
  __device__ PrefillAttention(const AttentionProblem& p, char* stages, int num_stages, Shared& shared)
      : p_(p), stages_(stages), num_stages_(num_stages), shared_(shared),
        loader_(p, shared.segment, stages, num_stages, shared.loader), warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32) {}

  // Attends over all keys of the thread block's tile.
  __device__ void run(const WorkStart& start) {
    if (threadIdx.x == 0) {
      Segments<WholeTiles> segments;
      segments.start(p_, start);
      segments.take(p_, shared_.segment);
    }
    __syncthreads();
    const Segment& segment = shared_.segment;
    loader_.start();
    begin(segment);
    const Range keys = segment.keys(), granules = granules_of(segment.visible.any);
    for (int granule = granules.begin; granule < granules.end; ++granule) {
      clear();
      const Range steps = intersection(keys, {granule * kGranule, (granule + 1) * kGranule});
      for (int key = steps.begin; key < steps.end; key += kStep) step(key);
      join_granule();
    }
    store_outputs(segment);
  }

 private:
  __device__ int row_of(int high) const { return 16 * warp_ + lane_ / 4 + 8 * high; }

  __device__ void begin(const Segment& segment) {
    scoring_ = Scoring::of(p_.options, scale_of(p_.key, segment.kv_head));
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(high);
      const float power = load_query<Store, kHeadSize>(queries_[high], p_, segment, row);
      const TileRow info = tile_row(p_, segment, scoring_, row, power);
      factors_[high] = info.factor;
      if (lane_ % 4 == 0) shared_.rows[row] = info;
    }
    sync_warp();
    const int rows = min(segment.num_rows - 16 * warp_, 16);
    visible_ = {{0, 0}, {0, 0}};
    if (rows > 0) {
      const int first = RowOwner(p_, segment, 16 * warp_).sequence_token;
      visible_ = visible_to(p_, segment.sequence, first, RowOwner(p_, segment, 16 * warp_ + rows - 1).sequence_token);
    }
    total_state_[0] = total_state_[1] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kProducts; ++i) total(i) = float4{};
  }

  __device__ void clear() {
    sums_[0] = sums_[1] = RowSums{};
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[0][i / 4][i % 4] = 0.0f;
  }

  __device__ void step(int key) {
    loader_.wait();
    __syncthreads();
    loader_.turn();
    const uint32_t stage = shared_address(stages_ + stage_ * Loader::kStageBytes);
    const uint32_t(&valid)[2] = shared_.loader.valid[key / kStep % kFlagSteps];
    if (key < visible_.any.end && key + kStep > visible_.any.begin) {
      const bool is_partial =
          key < visible_.all.begin || key + kStep > visible_.all.end || (valid[0] & valid[1]) != 0xffffffffu;
      if (is_partial) attend<true>(stage, key);
      else attend<false>(stage, key);
    }
    stage_ = stage_ + 1 == num_stages_ ? 0 : stage_ + 1;
  }

  template <bool kIsPartial>
  __device__ void attend(uint32_t stage, int key) {
    StepScores scores;
    multiply_scores(scores, stage);
    float corrections[2];
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const TileRow& row = shared_.rows[row_of(high)];
      score_row(scores, high, scoring_, row, key);
      if constexpr (kIsPartial) {
        const uint32_t(&valid)[2] = shared_.loader.valid[key / kStep % kFlagSteps];
        hide_keys(scores, high, row.visible, uint64_t{valid[1]} << 32 | valid[0], key);
      }
      corrections[high] = sums_[high].template add<Store>(
          [&](int i) -> float& { return scores[i / 2][2 * high + i % 2]; }, factors_[high]);
    }
    if (ballot(corrections[0] != 1.0f || corrections[1] != 1.0f) != 0) {
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) {
        o_[0][i / 4][i % 4] = __fmul_rn(o_[0][i / 4][i % 4], corrections[i / 2 % 2]);
      }
    }
    StepOperands weights[1];
#pragma unroll
    for (int i = 0; i < kStep / 16; ++i) weights_operand<Store>(weights[0][i], scores, i);
    bool special = false;
#pragma unroll
    for (int product = 0; product < kProducts; product += 2) {
      const bool found = multiply_values<Store, Loader::kRowBytes, kIsPartial>(o_, product, weights,
                                                                               stage + Loader::kTileBytes, product * 8);
      special = special || found;
    }
    if constexpr (kIsPartial) {
      if (ballot(special) != 0) add_specials(key, weights[0]);
    }
  }

  // Multiplies the queries with the keys of a step.
  __device__ void multiply_scores(StepScores& scores, uint32_t keys) const {
    using Tile = SharedTile<Loader::kRowBytes>;
    constexpr int kSteps = kChunkSteps<Store>;
#pragma unroll
    for (int i = 0; i < kStep / 2; ++i) scores[i / 4][i % 4] = 0.0f;
#pragma unroll
    for (int group = 0; group < kHeadSize / 16 / kSteps; ++group) {
#pragma unroll
      for (int block = 0; block < kStep / 8; ++block) {
        uint32_t chunk[4];
        load_chunk(chunk, keys + Tile::offset_bytes(lane_ / 4, 4 * group + lane_ % 4) + block * 8 * Loader::kRowBytes);
#pragma unroll
        for (int i = 0; i < kSteps; ++i) {
          uint32_t b[2];
          key_operand<Store>(b, chunk, i);
          const auto &low = queries_[0][group * kSteps + i], &high = queries_[1][group * kSteps + i];
          const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
          multiply_add<Store::kProduct>(scores[block], a, b[0], b[1]);
        }
      }
    }
  }

  // Adds the products of weights with those values of a step that are infinite or NaN, to the rows that see them.
  __device__ void add_specials(int key, const StepOperands& weights) {
    uint32_t* words = shared_.weights[warp_];
    store_weights(words, weights);
    const char* values = stages_ + stage_ * Loader::kStageBytes + Loader::kTileBytes;
    float sums[kProducts * 4];
#pragma unroll 1
    for (int i = 0; i < kProducts * 4; ++i) {
      const int high = i / 2 % 2, column = value_column<Store>(i / 4, i % 2);
      sums[i] = sum_specials<Store, Loader::kRowBytes>(shared_.rows[row_of(high)],
                                                       words + (lane_ / 4 + 8 * high) * (kStep / 2), values, column,
                                                       shared_.loader.valid[key / kStep % kFlagSteps], key, 0, kStep);
    }
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[0][i / 4][i % 4] = __fadd_rn(o_[0][i / 4][i % 4], sums[i]);
  }

  __device__ float4& total(int product) const { return shared_.totals[product][threadIdx.x]; }

  // Joins the granule's result to the result of the granules before.
  __device__ void join_granule() {
    JoinWeights weights[2];
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const float2 state = sums_[high].template total<Store>();
      weights[high] = join(total_state_[high].x, total_state_[high].y, state.x, state.y);
      total_state_[high] = {weights[high].m, weights[high].l};
    }
#pragma unroll
    for (int i = 0; i < kProducts; ++i) {
      float4 sum = total(i);
      const auto add = [&](float& to, const JoinWeights& w, float o) {
        if (!w.is_first) to = __fmaf_rn(to, w.first, __fmul_rn(o, w.second));
      };
      add(sum.x, weights[0], o_[0][i][0]);
      add(sum.y, weights[0], o_[0][i][1]);
      add(sum.z, weights[1], o_[0][i][2]);
      add(sum.w, weights[1], o_[0][i][3]);
      total(i) = sum;
    }
  }

  __device__ void store_outputs(const Segment& segment) const {
#pragma unroll 1
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(high);
      if (row >= segment.num_rows) continue;
      const RowOwner owner(p_, segment, row);
      const Finish result = finish_row(p_, segment, owner, high == 0 ? total_state_[0].x : total_state_[1].x,
                                       high == 0 ? total_state_[0].y : total_state_[1].y);
      if (lane_ % 4 == 0) store_lse(p_, owner, result);
#pragma unroll
      for (int product = 0; product < kProducts; product += 2) {
        float values[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float4& four = total(product + (Store::kIsFp8 ? i % 2 : i / 2));
          const bool is_second = (Store::kIsFp8 ? i / 2 : i % 2) != 0;
          const float o = high == 0 ? (is_second ? four.y : four.x) : (is_second ? four.w : four.z);
          values[i] = result.is_empty ? 0.0f : __fmul_rn(o, result.factor);
        }
        store_columns(owner, product, values);
      }
    }
  }
  // Writes the outputs of two products.
  __device__ void store_columns(const RowOwner& owner, int product, const float (&values)[4]) const {
    const int first = value_column<Store>(product, 0), second = value_column<Store>(product + 1, 0);
    if constexpr (Store::kIsFp8) {
      if (first < p_.value_size) gpu::store_outputs(p_, owner.token, owner.head, first, values);
    } else {
      if (first < p_.value_size) gpu::store_outputs<2>(p_, owner.token, owner.head, first, {values[0], values[1]});
      if (second < p_.value_size) gpu::store_outputs<2>(p_, owner.token, owner.head, second, {values[2], values[3]});
    }
  }

  const AttentionProblem& p_;
  Scoring scoring_;
  char* stages_;
  const int num_stages_;
  Shared& shared_;
  Loader loader_;
  const int warp_, lane_;
  int stage_ = 0;
  TokenGroup visible_;                   // to the warp's rows
  QueryOperands<kHeadSize> queries_[2];  // of the lane's two rows
  float factors_[2];
  float o_[1][kProducts][4];
  RowSums sums_[2];
  float2 total_state_[2];
};

template <class Store, int kHeadSize>
__global__ void MULTIKV_LAUNCH_BOUNDS(kPrefillThreads, 1)
    prefill_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p, int num_stages) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<PrefillShared<kHeadSize>*>(memory);
  constexpr int kSharedBytes = (sizeof(shared) + 127) / 128 * 128;
  const WorkStart& start = find_start<WholeTiles>(p, blockIdx.x, gridDim.x);
  if (start.is_idle()) return;
  PrefillAttention<Store, kHeadSize>(p, memory + kSharedBytes, num_stages, shared).run(start);
}

}  // namespace multikv::gpu
