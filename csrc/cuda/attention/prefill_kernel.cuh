// Attention of many query rows (prefill), for matrix instructions. Each warp of a thread block attends for 16 rows, and
// all warps share the keys and values in shared memory. Every row gets the bits of split_kernel.cuh.
#pragma once

#include "cuda/attention/tile_rows.cuh"

namespace multikv::gpu {

inline constexpr int kPrefillWarps = 8, kPrefillThreads = 32 * kPrefillWarps, kPrefillRows = 16 * kPrefillWarps;
using PrefillTileShape = TileShape<kPrefillRows, true>;

template <int kHeadSize>
struct PrefillShared {
  alignas(16) char queries[kPrefillRows * kHeadSize * 2];  // later, a warp's part holds its weights (add_specials)
  float totals[kHeadSize / 2][kPrefillThreads];            // o of the granules so far; each thread has its own column
  TileRow rows[kPrefillRows];
  LoaderState<PrefillTileShape> loader;
  Segment segment;
};

template <class Store, int kHeadSize>
class PrefillAttention {
  using Shared = PrefillShared<kHeadSize>;
  using Loader = TileLoader<Store, kHeadSize, PrefillTileShape, kPrefillThreads>;
  static constexpr int kProducts = kHeadSize / 8;

 public:
  __device__ PrefillAttention(const AttentionProblem& p, char* stages, int num_stages, Shared& shared)
      : p_(p), scoring_(Scoring::of(p.options)), stages_(stages), num_stages_(num_stages), shared_(shared),
        loader_(p, stages, num_stages, shared.loader), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  // Attends over all keys of the thread block's tile.
  __device__ void run(const WorkStart& start) {
    if (threadIdx.x == 0) {
      Segments<PrefillTileShape> segments;
      segments.start(p_, start);
      shared_.segment = segments.get(p_);
    }
    loader_.start(start);
    __syncthreads();
    const Segment& segment = shared_.segment;
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
    load_rows<Store, kHeadSize>(p_, segment, 16 * warp_, shared_.queries, shared_.rows + 16 * warp_);
    sync_warp();
#pragma unroll
    for (int i = 0; i < kHeadSize / 16; ++i) {
      load_query<kHeadSize>(queries_[i], shared_address(shared_.queries), 16 * warp_, i);
    }
    const int rows = min(segment.num_rows - 16 * warp_, 16);
    visible_ = {{0, 0}, {0, 0}};
    if (rows > 0) {
      const int first = RowOwner(p_, segment, 16 * warp_).sequence_token;
      visible_ = visible_to(p_, segment.sequence, first, RowOwner(p_, segment, 16 * warp_ + rows - 1).sequence_token);
    }
    total_state_[0] = total_state_[1] = {0.0f, 0.0f};
#pragma unroll 4
    for (int i = 0; i < kHeadSize / 2; ++i) shared_.totals[i][threadIdx.x] = 0.0f;
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
    const uint32_t(&valid)[2] = shared_.loader.valid[step_ % kFlagSteps];
    if (key < visible_.any.end && key + kStep > visible_.any.begin) {
      const bool is_partial =
          key < visible_.all.begin || key + kStep > visible_.all.end || (valid[0] & valid[1]) != 0xffffffffu;
      if (is_partial) attend<true>(stage, key);
      else attend<false>(stage, key);
    }
    stage_ = stage_ + 1 == num_stages_ ? 0 : stage_ + 1;
    ++step_;
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
      if constexpr (kIsPartial) hide_keys(scores, high, row, shared_.loader.valid[step_ % kFlagSteps], key);
      corrections[high] =
          sums_[high].template add<Store>([&](int i) -> float& { return scores[i / 2][2 * high + i % 2]; });
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

  __device__ void multiply_scores(StepScores& scores, uint32_t keys) {
#pragma unroll
    for (int block = 0; block < kStep / 8; block += 2) {
      float products[1][2][4] = {};
#pragma unroll
      for (int pair = 0; pair < kHeadSize / 32; ++pair) {
        multiply_keys<Store, Loader::kRowBytes>(products, keys, 8 * block, pair, [&](uint32_t(&out)[4], int, int i) {
#pragma unroll
          for (int word = 0; word < 4; ++word) out[word] = queries_[i][word];
        });
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[block + i / 4][i % 4] = products[0][i / 4][i % 4];
    }
  }

  // Adds the infinities and NaN of a step's values to the rows that see them.
  __device__ void add_specials(int key, const StepOperands& weights) {
    auto* words = reinterpret_cast<uint32_t*>(shared_.queries) + warp_ * (16 * kHeadSize / 2);
    store_weights(words, weights);
    const char* values = stages_ + stage_ * Loader::kStageBytes + Loader::kTileBytes;
    float sums[kProducts * 4];
#pragma unroll 1
    for (int i = 0; i < kProducts * 4; ++i) {
      const int high = i / 2 % 2, column = value_column<Store>(i / 4, i % 2);
      sums[i] = sum_specials<Store, Loader::kRowBytes>(shared_.rows[row_of(high)],
                                                       words + (lane_ / 4 + 8 * high) * (kStep / 2), values, column,
                                                       shared_.loader.valid[step_ % kFlagSteps], key, 0, kStep);
    }
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[0][i / 4][i % 4] = __fadd_rn(o_[0][i / 4][i % 4], sums[i]);
  }

  // Joins the granule's result to the result of the granules before.
  __device__ void join_granule() {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const float2 state = sums_[high].template total<Store>();
      const JoinWeights weights = join(total_state_[high].x, total_state_[high].y, state.x, state.y);
      total_state_[high] = {weights.m, weights.l};
      if (weights.is_first) continue;
#pragma unroll
      for (int i = 0; i < kProducts * 2; ++i) {
        float& total = shared_.totals[i * 2 + high][threadIdx.x];
        total = __fmaf_rn(total, weights.first, __fmul_rn(o_[0][i / 2][2 * high + i % 2], weights.second));
      }
    }
  }

  __device__ void store_outputs(const Segment& segment) {
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = row_of(high);
      if (row >= segment.num_rows) continue;
      const RowOwner owner(p_, segment, row);
      const Finish result = finish_row(p_, segment, owner, total_state_[high].x, total_state_[high].y);
#pragma unroll 1
      for (int i = 0; i < kProducts * 2; ++i) {
        const int column = value_column<Store>(i / 2, i % 2);
        const float value = __fmul_rn(shared_.totals[i * 2 + high][threadIdx.x], result.factor);
        if (column < p_.value_size) {
          store_output(p_, owner.token, owner.head, column, result.is_empty ? 0.0f : value);
        }
      }
      if (lane_ % 4 == 0) store_lse(p_, owner, result);
    }
  }

  const AttentionProblem& p_;
  const Scoring scoring_;
  char* stages_;
  const int num_stages_;
  Shared& shared_;
  Loader loader_;
  const int warp_, lane_;
  int stage_ = 0, step_ = 0;
  TokenGroup visible_;  // to the warp's rows
  uint32_t queries_[kHeadSize / 16][4];
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
  const WorkStart& start = find_starts<PrefillTileShape>(p, blockIdx.x, 1, gridDim.x)[0];
  if (start.is_idle()) return;
  PrefillAttention<Store, kHeadSize>(p, memory + kSharedBytes, num_stages, shared).run(start);
}

}  // namespace multikv::gpu
