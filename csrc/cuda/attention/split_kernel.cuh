// Attention of few query rows over many keys (decoding), for memory bandwidth. Every warp is a worker of its own: it
// attends for 16 rows, has its own ring of keys and values in shared memory, and waits for no other warp.
#pragma once

#include "cuda/attention/step_ring.cuh"
#include "cuda/attention/tile_rows.cuh"
#include "vendor/launch_early.cuh"

namespace multikv::gpu {

// The shared memory of a warp, beside its ring.
template <class Store, int kHeadSize>
struct SplitWarp {
  static constexpr bool kHoldsQueries = kHeadSize <= 128;  // in registers
  alignas(16) char ring[StepRing<Store, kHeadSize>::kBytes];
  alignas(16) char queries[kHoldsQueries ? 16 : SplitTileShape::kRows * kHeadSize * 2];
  uint32_t weights[SplitTileShape::kRows * kStep / 2];
  TileRow rows[SplitTileShape::kRows];
  typename StepRing<Store, kHeadSize>::Flags flags[StepRing<Store, kHeadSize>::kFlagSteps];
  Segments<SplitTileShape> segments;
  Segment segment;
  bool is_done;
};

template <class Store, int kHeadSize>
class SplitAttention {
  using Shared = SplitWarp<Store, kHeadSize>;
  using Ring = StepRing<Store, kHeadSize>;
  static constexpr int kProducts = kHeadSize / 8, kRowBytes = Ring::kRowBytes;

 public:
  __device__ SplitAttention(const AttentionProblem& p, Shared& shared)
      : p_(p), scoring_(Scoring::of(p.options)), shared_(shared), ring_(p, shared.ring, shared.flags),
        lane_(threadIdx.x % 32) {}

  // Attends over all granules of the warp's share.
  __device__ void run(const WorkStart& start) {
    if (lane_ == 0) shared_.segments.start(p_, start);
    while (true) {
      sync_warp();  // no lane reads the segment before any more
      if (lane_ == 0) {
        shared_.is_done = shared_.segments.is_done();
        if (!shared_.is_done) {
          shared_.segment = shared_.segments.get(p_);
          shared_.segments.next(p_);
        }
      }
      sync_warp();
      if (shared_.is_done) return;
      attend(shared_.segment);
    }
  }

 private:
  // Attends over the granules of a segment.
  __device__ void attend(const Segment& segment) {
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
    if (segment.is_whole) store_outputs(segment);
    else if (is_first) store_partial(segment, segment.tile_unit, true);
  }

  // Starts the copies and loads the queries. Queries pass through the ring's last part if registers hold them.
  __device__ void begin(const Segment& segment) {
    const bool has_padding = p_.key_size < kHeadSize || p_.value_size < kHeadSize;
    if (has_padding) fill_zeros(shared_.ring, Ring::kBytes);
    ring_.start(segment);
    char* queries = Shared::kHoldsQueries ? ring_.last_part() : shared_.queries;
    load_rows<Store, kHeadSize>(p_, segment, 0, queries, shared_.rows);
    sync_warp();
    if constexpr (Shared::kHoldsQueries) {
#pragma unroll
      for (int i = 0; i < kHeadSize / 16; ++i) load_query<kHeadSize>(queries_[i], shared_address(queries), 0, i);
      sync_warp();
      if (has_padding) fill_zeros(queries, Ring::kPartBytes);
    }
    total_state_[0] = total_state_[1] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) total_[i / 4][i % 4] = 0.0f;
  }

  // Elements past the head size are multiplied as zeros, and never loaded.
  __device__ void fill_zeros(char* memory, int bytes) const {
    for (int i = lane_; i < bytes / 16; i += 32) reinterpret_cast<uint4*>(memory)[i] = uint4{};
    sync_warp();
  }

  __device__ void clear() {
    sums_[0] = sums_[1] = RowSums{};
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[0][i / 4][i % 4] = 0.0f;
  }

  __device__ void step(const Segment& segment, int key) {
    StepScores scores;
    multiply_part<0>(scores);
    multiply_part<1>(scores);
    const auto& flags = ring_.flags(key);
    const Range all = segment.visible.all;
    const bool is_partial = key < all.begin || key + kStep > all.end || (flags[0] & flags[1]) != 0xffffffffu;
    StepOperands weights[1];
    weigh(scores, weights[0], segment.num_rows, key, is_partial);
    add_values<0>(weights, key, is_partial);
    add_values<1>(weights, key, is_partial);
  }

  // Multiplies the queries with half of the step's keys.
  template <int kHalf>
  __device__ void multiply_part(StepScores& scores) {
    const uint32_t keys = ring_.template next<kHalf>();
#pragma unroll
    for (int first = 0; first < kPartKeys; first += 16) {
      float products[1][2][4] = {};
#pragma unroll
      for (int pair = 0; pair < kHeadSize / 32; ++pair) {
        multiply_keys<Store, kRowBytes>(products, keys, first, pair, [&](uint32_t(&out)[4], int, int i) {
          if constexpr (Shared::kHoldsQueries) {
#pragma unroll
            for (int word = 0; word < 4; ++word) out[word] = queries_[i][word];
          } else {
            load_query<kHeadSize>(out, shared_address(shared_.queries), 0, i);
          }
        });
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) scores[kHalf * 4 + first / 8 + i / 4][i % 4] = products[0][i / 4][i % 4];
    }
  }

  // Turns products into scores, and scores into weights.
  __device__ void weigh(StepScores& scores, StepOperands& weights, int num_rows, int key, bool is_partial) {
    float corrections[2] = {1.0f, 1.0f};
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      if (8 * high >= num_rows) continue;  // nobody needs these rows
      const TileRow& row = shared_.rows[lane_ / 4 + 8 * high];
      score_row(scores, high, scoring_, row, key);
      if (is_partial) hide_keys(scores, high, row, ring_.flags(key), key);
      corrections[high] =
          sums_[high].template add<Store>([&](int i) -> float& { return scores[i / 2][2 * high + i % 2]; });
    }
    if (ballot(corrections[0] != 1.0f || corrections[1] != 1.0f) != 0) {
#pragma unroll
      for (int i = 0; i < kProducts * 4; ++i) {
        o_[0][i / 4][i % 4] = __fmul_rn(o_[0][i / 4][i % 4], corrections[i / 2 % 2]);
      }
    }
#pragma unroll
    for (int i = 0; i < kStep / 16; ++i) weights_operand<Store>(weights[i], scores, i);
  }

  template <int kHalf>
  __device__ void add_values(const StepOperands (&weights)[1], int key, bool is_partial) {
    const uint32_t values = ring_.template next<2 + kHalf>();
    if (is_partial) {
      char* rows = shared_.ring + (values - shared_address(shared_.ring));
      if (has_specials(rows)) take_specials(rows, weights[0], key, kHalf * kPartKeys);
    }
#pragma unroll
    for (int product = 0; product < kProducts; product += 2) {
      multiply_32_values<Store, kRowBytes, false>(o_, product, weights, 2 * kHalf, values, product * 8);
    }
  }

  // Whether a part of values holds an infinity or a NaN.
  __device__ bool has_specials(const char* values) const {
    bool found = false;
#pragma unroll 1
    for (int i = lane_; i < Ring::kPartBytes / 4; i += 32) {
      found = found || has_special_code<Store>(reinterpret_cast<const uint32_t*>(values)[i]);
    }
    return ballot(found) != 0;
  }

  // Adds the infinities and NaN among 32 values to the rows that see them, and replaces them by 0: rows that see
  // different keys share a matrix instruction, and 0 * NaN is NaN.
  __device__ void take_specials(char* values, const StepOperands& weights, int key, int step_key) {
    store_weights(shared_.weights, weights);
    float sums[kProducts * 4];
#pragma unroll 1
    for (int i = 0; i < kProducts * 4; ++i) {
      const int row = lane_ / 4 + i / 2 % 2 * 8, column = value_column<Store>(i / 4, i % 2);
      sums[i] = sum_specials<Store, kRowBytes>(shared_.rows[row], shared_.weights + row * (kStep / 2), values, column,
                                               ring_.flags(key), key, step_key, kPartKeys);
    }
#pragma unroll
    for (int i = 0; i < kProducts * 4; ++i) o_[0][i / 4][i % 4] = __fadd_rn(o_[0][i / 4][i % 4], sums[i]);
    sync_warp();
#pragma unroll 1
    for (int i = lane_; i < Ring::kPartBytes / 4; i += 32) {
      auto* word = reinterpret_cast<uint32_t*>(values) + i;
      *word = without_special_codes<Store>(*word);
    }
    sync_warp();
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
        float& total = total_[i / 2][2 * high + i % 2];
        total = __fmaf_rn(total, weights.first, __fmul_rn(o_[0][i / 2][2 * high + i % 2], weights.second));
      }
    }
  }

  // Calls visit(column, element i of a product) for each of this lane's columns.
  template <class Visit>
  __device__ void for_each_column(Visit visit) const {
#pragma unroll
    for (int i = 0; i < kProducts * 2; ++i) {
      const int column = value_column<Store>(i / 2, i % 2);
      if (column < p_.value_size) visit(column, i / 2, i % 2);
    }
  }

  // Writes the result of one granule, or of all granules so far, to the workspace.
  __device__ void store_partial(const Segment& segment, int64_t slot, bool is_total) {
    const Partials partials(p_);
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const float2 state = is_total ? total_state_[high] : sums_[high].template total<Store>();
      const int row = lane_ / 4 + 8 * high;
      if (row >= segment.num_rows) continue;
      if (lane_ % 4 == 0) *partials.state(slot, row) = state;
      float* output = partials.output(slot, row);
      for_each_column([&](int column, int product, int i) {
        output[column] = is_total ? total_[product][2 * high + i] : o_[0][product][2 * high + i];
      });
    }
  }

  // Writes out and lse. The outputs pass through the ring, which is empty at the end of a segment.
  __device__ void store_outputs(const Segment& segment) {
    constexpr int kPitch = kHeadSize + 8;
    static_assert(SplitTileShape::kRows * kPitch * 4 <= Ring::kBytes);
    auto* outputs = reinterpret_cast<float*>(shared_.ring);
    sync_warp();
#pragma unroll
    for (int high = 0; high < 2; ++high) {
      const int row = lane_ / 4 + 8 * high;
      if (row >= segment.num_rows) continue;
      const RowOwner owner(p_, segment, row);
      const Finish result = finish_row(p_, segment, owner, total_state_[high].x, total_state_[high].y);
#pragma unroll
      for (int i = 0; i < kProducts * 2; ++i) {
        const float value = __fmul_rn(total_[i / 2][2 * high + i % 2], result.factor);
        outputs[row * kPitch + value_column<Store>(i / 2, i % 2)] = result.is_empty ? 0.0f : value;
      }
      if (lane_ % 4 == 0) store_lse(p_, owner, result);
    }
    sync_warp();
#pragma unroll 1
    for (int row = 0; row < segment.num_rows; ++row) {
      const RowOwner owner(p_, segment, row);
#pragma unroll 1
      for (int column = lane_; column < p_.value_size; column += 32) {
        store_output(p_, owner.token, owner.head, column, outputs[row * kPitch + column]);
      }
    }
    sync_warp();
  }

  const AttentionProblem& p_;
  const Scoring scoring_;
  Shared& shared_;
  Ring ring_;
  const int lane_;
  uint32_t queries_[Shared::kHoldsQueries ? kHeadSize / 16 : 1][4];
  float o_[1][kProducts][4], total_[kProducts][4];
  RowSums sums_[2];
  float2 total_state_[2];
};

// The most warps of a thread block.
inline constexpr int kSplitWarps = 4;

template <class Store, int kHeadSize>
__global__ void MULTIKV_LAUNCH_BOUNDS(32 * kSplitWarps, kHeadSize <= 128 ? 2 : 1)
    split_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p) {
  extern __shared__ __align__(128) char memory[];
  allow_next_launch();
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  auto& shared = reinterpret_cast<SplitWarp<Store, kHeadSize>*>(memory)[warp];
  const WorkStart& start =
      find_starts<SplitTileShape>(p, static_cast<int64_t>(blockIdx.x) * warps, warps, int64_t{gridDim.x} * warps)[warp];
  if (!start.is_idle()) SplitAttention<Store, kHeadSize>(p, shared).run(start);
}

}  // namespace multikv::gpu
