// Attention of few query rows over many keys (decoding), for memory bandwidth. The four warps of a thread block share
// 16 * kTiles rows:
//
//   scores    each warp multiplies the rows with 16 of the step's 64 keys, and writes the scores to shared memory
//   weights   each warp reads all scores, and computes all weights
//   values    each warp multiplies the weights with a quarter of the columns of the values
#pragma once

#include "cuda/attention/tile_rows.cuh"

namespace multikv::gpu {

inline constexpr int kSplitThreads = 128;
template <int kTiles>
using SplitTileShape = TileShape<16 * kTiles, kSplitThreads, false>;

template <int kHeadSize, int kTiles>
struct SplitShared {
  static constexpr int kRows = 16 * kTiles;
  static constexpr int kScorePitch = kStep + 8;  // avoids conflicts of memory banks
  alignas(16) char queries[kRows * kHeadSize * 2];
  float scores[kRows][kScorePitch];
  TileRow rows[kRows];
  LoaderState<SplitTileShape<kTiles>> loader;
  Segments<SplitTileShape<kTiles>> segments;
  Segment segment;
  bool is_done;
  bool is_last;
};

template <class Store, int kHeadSize, int kTiles>
class SplitAttention {
  using Shared = SplitShared<kHeadSize, kTiles>;
  using Loader = TileLoader<Store, kHeadSize, SplitTileShape<kTiles>>;
  static constexpr int kWarps = kSplitThreads / 32, kWarpColumns = kHeadSize / kWarps, kProducts = kWarpColumns / 8;
  static constexpr bool kHoldsQueries = kTiles * kHeadSize <= 128;  // in registers

 public:
  __device__ SplitAttention(const AttentionProblem& p, char* stages, int num_stages, Shared& shared)
      : p_(p), scoring_(Scoring::of(p.options)), stages_(stages), num_stages_(num_stages), shared_(shared),
        loader_(p, stages, num_stages, shared.loader), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  // Attends over all granules of this thread block's share.
  __device__ void run(const WorkStart& start) {
    if (threadIdx.x == 0) shared_.segments.start(p_, start);
    loader_.start(start);
    while (true) {
      __syncthreads();  // nobody reads the segment before any more
      if (threadIdx.x == 0) {
        shared_.is_done = shared_.segments.is_done();
        if (!shared_.is_done) {
          shared_.segment = shared_.segments.get(p_);
          shared_.segments.next(p_);
        }
      }
      __syncthreads();
      if (shared_.is_done) return;
      run(shared_.segment, Shares(start.total));
    }
  }

 private:
  // Attends over the granules of a segment.
  __device__ void run(const Segment& segment, const Shares& shares) {
    begin(segment);
    const Range keys = segment.keys();
    const Range granules = intersection(segment.granules, granules_of(segment.visible.any));
    const bool is_first = segment.granules.begin == segment.tile_granules.begin;
    for (int granule = granules.begin; granule < granules.end; ++granule) {
      clear();
      const Range steps = intersection(keys, {granule * kGranule, (granule + 1) * kGranule});
      for (int key = steps.begin; key < steps.end; key += kStep) step(segment, key);
      if (is_first) join_granule();
      else store_partial(segment, segment.tile_unit + granule - segment.tile_granules.begin, false);
    }
    if (segment.is_whole) return store_outputs(segment);
    if (is_first) store_partial(segment, segment.tile_unit, true);
    join_if_last(segment, shares);
  }

  __device__ void begin(const Segment& segment) {
#pragma unroll
    for (int i = 0; i < Shared::kRows / kWarps; ++i) {
      load_row<Store, kHeadSize>(p_, segment, warp_ + i * kWarps, shared_.queries, shared_.rows);
    }
    __syncthreads();
    if constexpr (kHoldsQueries) {
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int i = 0; i < kHeadSize / 16; ++i) {
          load_query<kHeadSize>(queries_[tile][i], shared_address(shared_.queries), 16 * tile, i);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      total_state_[tile][0] = total_state_[tile][1] = {0.0f, 0.0f};
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) total_[tile][i / 4][i % 4] = 0.0f;
    }
  }

  __device__ void clear() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      sums_[tile][0] = sums_[tile][1] = RowSums{};
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) o_[tile][i / 4][i % 4] = 0.0f;
    }
  }

  __device__ void step(const Segment& segment, int key) {
    loader_.wait();
    __syncthreads();
    loader_.turn();
    const uint32_t stage = shared_address(stages_ + stage_ * Loader::kStageBytes);
    const uint32_t(&valid)[2] = shared_.loader.valid[step_ % kFlagSteps];
    const Range all = segment.visible.all;
    const bool is_partial = key < all.begin || key + kStep > all.end || (valid[0] & valid[1]) != 0xffffffffu;
    if (is_partial) write_scores<true>(stage, key);
    else write_scores<false>(stage, key);
    __syncthreads();
    StepOperands weights[kTiles];
    weigh(weights, segment.num_rows);
    const uint32_t values = stage + Loader::kTileBytes;
    if (is_partial) add_values<true>(weights, values, key);
    else add_values<false>(weights, values, key);
    stage_ = stage_ + 1 == num_stages_ ? 0 : stage_ + 1;
    ++step_;
  }

  __device__ bool is_valid(int step_key) const {
    return (shared_.loader.valid[step_ % kFlagSteps][step_key / 32] >> step_key % 32 & 1) != 0;
  }

  // Computes the scores of this warp's 16 keys.
  template <bool kIsPartial>
  __device__ void write_scores(uint32_t keys, int key) {
    float products[kTiles][2][4] = {};
#pragma unroll
    for (int pair = 0; pair < kHeadSize / 32; ++pair) {
      if (32 * pair >= p_.key_size) break;
      multiply_keys<Store, Loader::kRowBytes>(
          products, keys, 16 * warp_, pair, [&](uint32_t(&out)[4], int tile, int i) {
            if constexpr (kHoldsQueries) {
#pragma unroll
              for (int word = 0; word < 4; ++word) out[word] = queries_[tile][i][word];
            } else {
              load_query<kHeadSize>(out, shared_address(shared_.queries), 16 * tile, i);
            }
          });
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int row = 16 * tile + lane_ / 4 + 8 * high;
        const TileRow& info = shared_.rows[row];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int step_key = 16 * warp_ + 8 * half + lane_ % 4 * 2;
          float2 scores;
          scores.x = score<kIsPartial>(info, products[tile][half][2 * high], key, step_key);
          scores.y = score<kIsPartial>(info, products[tile][half][2 * high + 1], key, step_key + 1);
          *reinterpret_cast<float2*>(&shared_.scores[row][step_key]) = scores;
        }
      }
    }
  }

  template <bool kIsPartial>
  __device__ float score(const TileRow& row, float product, int key, int step_key) const {
    if (kIsPartial && !(is_valid(step_key) && row.visible.sees(key + step_key))) return kNoScore;
    return scoring_(product, row.coefficient, row.slope, key + step_key - row.visible.position);
  }

  // Reads the scores, and turns them into weights.
  __device__ void weigh(StepOperands (&operands)[kTiles], int num_rows) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      StepScores scores;
      float corrections[2] = {1.0f, 1.0f};
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int row = 16 * tile + lane_ / 4 + 8 * high;
#pragma unroll
        for (int block = 0; block < kStep / 8; ++block) {
          const float2 pair = *reinterpret_cast<const float2*>(&shared_.scores[row][8 * block + lane_ % 4 * 2]);
          scores[block][2 * high] = pair.x;
          scores[block][2 * high + 1] = pair.y;
        }
        if (16 * tile + 8 * high >= num_rows) continue;  // nobody needs these rows
        corrections[high] =
            sums_[tile][high].template add<Store>([&](int i) -> float& { return scores[i / 2][2 * high + i % 2]; });
      }
      if (ballot(corrections[0] != 1.0f || corrections[1] != 1.0f) != 0) {
#pragma unroll
        for (int i = 0; i < kProducts * 4; ++i) {
          o_[tile][i / 4][i % 4] = __fmul_rn(o_[tile][i / 4][i % 4], corrections[i / 2 % 2]);
        }
      }
#pragma unroll
      for (int i = 0; i < kStep / 16; ++i) weights_operand<Store>(operands[tile][i], scores, i);
    }
  }

  template <bool kIsPartial>
  __device__ void add_values(const StepOperands (&weights)[kTiles], uint32_t values, int key) {
#pragma unroll
    for (int product = 0; product < kProducts; product += 2) {
      const int first_column = warp_ * kWarpColumns + product * 8;
      if (first_column >= p_.value_size) break;
      const bool special =
          multiply_values<Store, Loader::kRowBytes, kIsPartial>(o_, product, weights, values, first_column);
      if constexpr (kIsPartial) {
        if (ballot(special) != 0) add_specials(product, key);
      }
    }
  }

  // Adds the infinities and NaN of two products' columns to the rows that see them.
  __device__ void add_specials(int product, int key) {
    const char* values = stages_ + stage_ * Loader::kStageBytes + Loader::kTileBytes;
    for (int step_key = 0; step_key < kStep; ++step_key) {
      if (!is_valid(step_key)) continue;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = warp_ * kWarpColumns + value_column<Store>(product + i / 2, i % 2);
        const float value = value_at<Store, Loader::kRowBytes>(values, step_key, column);
        if (fabsf(value) < -kNoScore) continue;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
          for (int high = 0; high < 2; ++high) {
            const int row = 16 * tile + lane_ / 4 + 8 * high;
            if (!shared_.rows[row].visible.sees(key + step_key)) continue;
            const float weight = sums_[tile][high].template rounded_weight<Store>(shared_.scores[row][step_key]);
            float& o = o_[tile][product + i / 2][2 * high + i % 2];
            o = __fmaf_rn(weight, value, o);
          }
        }
      }
    }
  }

  // Joins the granule's result to the result of the granules before.
  __device__ void join_granule() {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const float2 state = sums_[tile][high].template total<Store>();
        float2& total = total_state_[tile][high];
        const JoinWeights weights = join(total.x, total.y, state.x, state.y);
        total = {weights.m, weights.l};
#pragma unroll
        for (int i = 0; i < kProducts * 2; ++i) {
          float& sum = total_[tile][i / 2][2 * high + i % 2];
          sum = joined(weights, sum, o_[tile][i / 2][2 * high + i % 2]);
        }
      }
    }
  }

  // Calls visit(row, m and l, o, columns of this lane) for each of this lane's rows.
  template <class Visit>
  __device__ void for_each_row(const Segment& segment, Visit visit) const {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int high = 0; high < 2; ++high) {
        const int row = 16 * tile + lane_ / 4 + 8 * high;
        if (row < segment.num_rows) visit(tile, high, row);
      }
    }
  }

  // Calls visit(column, element i of a product) for each of this lane's columns.
  template <class Visit>
  __device__ void for_each_column(Visit visit) const {
#pragma unroll
    for (int i = 0; i < kProducts * 2; ++i) {
      const int column = warp_ * kWarpColumns + value_column<Store>(i / 2, i % 2);
      if (column < p_.value_size) visit(column, i / 2, i % 2);
    }
  }

  // Writes the result of one granule, or of all granules so far, to the workspace.
  __device__ void store_partial(const Segment& segment, int64_t slot, bool is_total) {
    const Partials partials(p_);
    float2 states[kTiles][2];
#pragma unroll
    for (int i = 0; i < kTiles * 2; ++i) {
      states[i / 2][i % 2] = is_total ? total_state_[i / 2][i % 2] : sums_[i / 2][i % 2].template total<Store>();
    }
    for_each_row(segment, [&](int tile, int high, int row) {
      if (warp_ == 0 && lane_ % 4 == 0) store_coherent(partials.state(slot, row), states[tile][high]);
      float* output = partials.output(slot, row);
      for_each_column([&](int column, int product, int i) {
        const float value = is_total ? total_[tile][product][2 * high + i] : o_[tile][product][2 * high + i];
        store_coherent(output + column, value);
      });
    });
  }

  __device__ void store_outputs(const Segment& segment) {
    for_each_row(segment, [&](int tile, int high, int row) {
      const RowOwner owner(p_, segment, row);
      const float2 state = total_state_[tile][high];
      const Finish result = finish_row(p_, segment, owner, state.x, state.y);
      for_each_column([&](int column, int product, int i) {
        const float value = __fmul_rn(total_[tile][product][2 * high + i], result.factor);
        store_output(p_, owner.token, owner.head, column, result.is_empty ? 0.0f : value);
      });
      if (warp_ == 0 && lane_ % 4 == 0) store_lse(p_, owner, result);
    });
  }

  // The last thread block that has written its partial results of a tile joins them all.
  __device__ void join_if_last(const Segment& segment, const Shares& shares) {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      const int64_t units = max(segment.tile_granules.size(), 1);
      const int64_t blocks = shares.block_of(segment.tile_unit + units - 1) - shares.block_of(segment.tile_unit) + 1;
      shared_.is_last = Partials(p_).arrive(segment.tile_unit, p_.nonce, blocks);
      __threadfence();
    }
    __syncthreads();
    if (shared_.is_last) join_partials(p_, segment, shares);
  }

  const AttentionProblem& p_;
  const Scoring scoring_;
  char* stages_;
  const int num_stages_;
  Shared& shared_;
  Loader loader_;
  const int warp_, lane_;
  int stage_ = 0, step_ = 0;
  uint32_t queries_[kHoldsQueries ? kTiles : 1][kHoldsQueries ? kHeadSize / 16 : 1][4];
  float o_[kTiles][kProducts][4], total_[kTiles][kProducts][4];
  RowSums sums_[kTiles][2];
  float2 total_state_[kTiles][2];
};

template <class Store, int kHeadSize, int kTiles>
__global__ void MULTIKV_LAUNCH_BOUNDS(kSplitThreads, 2)
    split_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p, int num_stages) {
  extern __shared__ __align__(128) char memory[];
  auto& shared = *reinterpret_cast<SplitShared<kHeadSize, kTiles>*>(memory);
  constexpr int kSharedBytes = (sizeof(shared) + 127) / 128 * 128;
  const WorkStart start = find_start<SplitTileShape<kTiles>>(p);
  if (Shares(start.total).begin(blockIdx.x) == start.total) return;
  SplitAttention<Store, kHeadSize, kTiles>(p, memory + kSharedBytes, num_stages, shared).run(start);
}

}  // namespace multikv::gpu
