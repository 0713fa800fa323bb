// Attention of few query rows (decoding) over so few keys that no thread block has more than kMostClusterGranules
// granules (launch_matrix.cuh). A tile of query rows has a cluster of thread blocks, often a cluster of one thread
// block. The thread blocks of a cluster divide the granules of the tile, and the first one joins all results. So the
// kernel needs neither a schedule nor a second launch nor a workspace. Keys and values of a whole granule are copied to
// shared memory, so that a granule takes three barriers, and each weight is computed by one warp for all warps. The
// results have the same bits as those of split_kernel.cuh.
//
// Products are transposed, as in split_kernel.cuh.
#pragma once

#include "cuda/attention/cluster_results.cuh"
#include "cuda/attention/granule_loader.cuh"
#include "vendor/clusters.cuh"

namespace multikv::gpu {

template <class Store, int kHeadSize, int kRows>
class ClusterAttention {
  using Shape = ClusterShape<Store, kHeadSize>;
  using Shared = ClusterShared<Store, kHeadSize, kRows>;
  using Memory = ClusterMemory<Store, kHeadSize, kRows>;
  using Tile = SharedTile<Shape::kRowBytes>;
  static constexpr int kRowTiles = kRows / 8, kColumnTiles = Shape::kColumnTiles, kHalfKeys = kStep / 2;

 public:
  // `keys` and `values` have room for a granule. If the cluster has several thread blocks, `stored` has room for the
  // results of all granules of one thread block.
  __device__ ClusterAttention(const AttentionProblem& p, Shared& shared, char* keys, char* values, float* stored)
      : p_(p), shared_(shared), keys_(keys), values_(values), stored_(stored + threadIdx.x), warp_(threadIdx.x / 32),
        lane_(threadIdx.x % 32), group_(lane_ / 4), pair_(lane_ % 4 * 2),
        loader_(p, shared.segment, shared.offsets[warp_], keys + warp_ * Shape::kStepBytes,
                values + warp_ * Shape::kStepBytes) {}

  __device__ void run() {
    const TilePart part(p_);
    look_up_early(part);
    if (threadIdx.x == 0) shared_.has_rows = take_part(p_, part, shared_.segment);
    __syncthreads();
    if (!shared_.has_rows) return;
    const Segment& segment = shared_.segment;
    attend(segment);
    if (p_.tile_blocks > 1) {
      sync_cluster();
      if (part.number == 0) join_others(segment);
      sync_cluster();  // the first thread block has read all results
    }
    if (part.number == 0) results_.store_outputs(p_, segment);
  }

 private:
  // Looks up the block ids of the granule with which this thread block probably begins, before the length of the
  // sequence is known.
  __device__ void look_up_early(const TilePart& part) {
    const int64_t table_keys = p_.sequences.blocks_per_sequence * p_.blocks.block_size.signed_value();
    const int end = static_cast<int>(clamp(p_.sequences.max_seq_len, 0, min(table_keys, int64_t{INT32_MAX})));
    const int granule = granules_of_block(granules_of({0, end}), part.number, p_.tile_blocks).begin;
    loader_.look_up(part.sequence, granule, end);
  }

  // Attends over all granules of the thread block. The keys of the next granule are copied while the weights of the
  // current granule are computed and multiplied with its values.
  __device__ void attend(const Segment& segment) {
    const Range granules = segment.granules;
    uint64_t valid = loader_.copy_keys(granules.begin);
    loader_.copy_values(granules.begin);
    begin(segment);
#pragma unroll 1
    for (int granule = granules.begin; granule < granules.end; ++granule) {
      const Range keys = intersection(segment.keys(), {granule * kGranule, (granule + 1) * kGranule});
      const int first = keys.begin % kGranule / kStep, end = (keys.end - 1) % kGranule / kStep + 1;
      const bool has_step = warp_ >= first && warp_ < end;
      Scores scores;
      wait_for_copies<1>();
      sync_warp();
      if (has_step) compute_scores(scores, segment, granule * kGranule + warp_ * kStep, valid);
      sync_warp();
      valid = loader_.copy_keys(granule + 1);
      __syncthreads();
      if (has_step) store_weights(scores, first);
      wait_for_copies<1>();
      __syncthreads();
      sum_weights(first, end);
      add_values(segment, granule, first, end);
      if (blockIdx.x == 0) results_.join();
      else store_result(granule - granules.begin);
      __syncthreads();  // all warps have finished with the values
      loader_.copy_values(granule + 1);
      parity_ ^= 1;
    }
  }

  // Joins the results of the cluster's other thread blocks to those of this one.
  __device__ void join_others(const Segment& segment) {
#pragma unroll 1
    for (int block = 1; block < p_.tile_blocks; ++block) {
      const int count = granules_of_block(segment.tile_granules, block, p_.tile_blocks).size();
#pragma unroll 1
      for (int i = 0; i < count; ++i) {
        results_.for_each_number([&](int at, float& number) {
          number = load_of_block(stored_ + (i * Memory::kNumbers + at) * Shape::kThreads, block);
        });
        results_.join();
      }
    }
  }
  __device__ void store_result(int index) {
    results_.for_each_number(
        [&](int at, float& number) { stored_[(index * Memory::kNumbers + at) * Shape::kThreads] = number; });
  }

  // Loads the queries.
  __device__ void begin(const Segment& segment) {
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
    __syncthreads();
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) factors_[tile] = shared_.rows[8 * tile + group_].factor;
  }

  // The scores of one step that this lane holds, as numbers x (score = x * factor, see Scoring): for row group_ of each
  // row tile, number i is that of key i / 2 * 8 + pair_ + i % 2.
  using Scores = float[kRowTiles][kStep / 4];

  // Whether some rows see keys that others do not see.
  __device__ static bool is_mixed(const Segment& segment, Range keys) {
    return intersection(keys, segment.visible.all).size() < intersection(keys, segment.visible.any).size();
  }

  // Computes the scores of the warp's step, at `key`, and the largest one. Bit i of `valid` says whether key i can be
  // read.
  __device__ void compute_scores(Scores& scores, const Segment& segment, int key, uint64_t valid) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float products[kHalfKeys / 16][kRowTiles][4] = {};
      multiply_keys(products, shared_address(keys_ + (warp_ * kStep + half * kHalfKeys) * Shape::kRowBytes));
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) transpose(scores[tile], half, products, tile);
    }
    const bool is_partial = intersection({key, key + kStep}, segment.visible.all).size() < kStep || ~valid != 0;
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const TileRow& row = shared_.rows[8 * tile + group_];
      if (!scoring_.is_plain) score(scores[tile], row, key);
      if (is_partial) hide_keys(scores[tile], row, key, valid);
      const float largest = largest_score([&](int i) -> float& { return scores[tile][i]; }, factors_[tile]);
      if (pair_ == 0) shared_.largest[parity_][warp_][8 * tile + group_] = largest;
    }
  }

  // Multiplies the queries with half of the keys of a step.
  __device__ void multiply_keys(float (&products)[kHalfKeys / 16][kRowTiles][4], uint32_t keys) const {
    constexpr int kSteps = kChunkSteps<Store>, kKeyTiles = kHalfKeys / 16;
#pragma unroll
    for (int chunks = 0; chunks < Shape::kChunks / 4; ++chunks) {
      uint32_t chunk[kKeyTiles][2][4];
#pragma unroll
      for (int i = 0; i < 2 * kKeyTiles; ++i) {
        load_chunk(chunk[i / 2][i % 2],
                   keys + Tile::offset_bytes(group_, 4 * chunks + lane_ % 4) + i * 8 * Shape::kRowBytes);
      }
#pragma unroll
      for (int i = 0; i < kSteps; ++i) {
        uint2 queries[kRowTiles];
#pragma unroll
        for (int tile = 0; tile < kRowTiles; ++tile) queries[tile] = shared_.queries[tile][chunks * kSteps + i][lane_];
#pragma unroll
        for (int key_tile = 0; key_tile < kKeyTiles; ++key_tile) {
          uint32_t low[2], high[2];
          key_operand<Store>(low, chunk[key_tile][0], i);
          key_operand<Store>(high, chunk[key_tile][1], i);
          const uint32_t a[4] = {low[0], high[0], low[1], high[1]};
#pragma unroll
          for (int tile = 0; tile < kRowTiles; ++tile) {
            multiply_add<Store::kProduct>(products[key_tile][tile], a, queries[tile].x, queries[tile].y);
          }
        }
      }
    }
  }

  // Brings the products of 8 rows with half of the keys to the order of Scores. In `products`, a lane has the rows
  // pair_ and pair_ + 1.
  __device__ void transpose(float (&scores)[kStep / 4], int half, const float (&products)[kHalfKeys / 16][kRowTiles][4],
                            int tile) {
    auto& memory = shared_.scores[warp_];
    sync_warp();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      memory[pair_ + i % 2][16 * (i / 4) + group_ + i % 4 / 2 * 8] = products[i / 4][tile][i % 4];
    }
    sync_warp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto two = *reinterpret_cast<const float2*>(&memory[group_][8 * i + pair_]);
      scores[8 * half + 2 * i] = two.x;
      scores[8 * half + 2 * i + 1] = two.y;
    }
  }

  __device__ void score(float (&scores)[kStep / 4], const TileRow& row, int key) const {
    const int first = key + pair_ - row.visible.position;
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i) {
      scores[i] = scoring_(scores[i], row.coefficient, row.slope, first + i / 2 * 8 + i % 2);
    }
  }

  // Replaces the scores of keys that the row does not see.
  __device__ void hide_keys(float (&scores)[kStep / 4], const TileRow& row, int key, uint64_t valid) const {
    uint32_t seen = 0;  // bit i: whether the row sees the key of scores[i]
#pragma unroll 1
    for (int i = 0; i < kStep / 4; ++i) {
      const int step_key = i / 2 * 8 + pair_ + i % 2;
      if ((valid >> step_key & 1) != 0 && row.visible.sees(key + step_key)) seen |= 1u << i;
    }
#pragma unroll
    for (int i = 0; i < kStep / 4; ++i) {
      if ((seen >> i & 1) == 0) scores[i] = kNoScore;
    }
  }

  // Turns the scores of the warp's step into weights, and stores them in shared memory for all warps. `first` is the
  // granule's first step.
  __device__ void store_weights(Scores& scores, int first) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const int row = 8 * tile + group_;
      float before = kNoScore;
#pragma unroll 1
      for (int step = first; step < warp_; ++step) before = fmaxf(before, shared_.largest[parity_][step][row]);
      const float largest = fmaxf(before, shared_.largest[parity_][warp_][row]);
      if (pair_ == 0) shared_.corrections[warp_][row] = correction_of(before, largest);
      auto& x = scores[tile];
      shared_.sums[warp_][tile][lane_] = weigh<Store>([&](int i) -> float& { return x[i]; }, factors_[tile], largest);
#pragma unroll
      for (int half = 0; half < kStep / 32; ++half) {
        const auto word = [&](int i) { return rounded<Store::kProduct>(x[8 * half + 2 * i], x[8 * half + 2 * i + 1]); };
        shared_.weights[warp_][tile][half][lane_] = {word(0), word(1), word(2), word(3)};
      }
    }
  }

  // Adds up the weights of all steps of the granule.
  __device__ void sum_weights(int first, int end) {
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) {
      const int row = 8 * tile + group_;
      RowSums sums;
#pragma unroll 1
      for (int step = first; step < end; ++step) {
        sums.m = fmaxf(sums.m, shared_.largest[parity_][step][row]);
        sums.l = __fmaf_rn(sums.l, shared_.corrections[step][row], shared_.sums[step][tile][lane_]);
      }
      results_.states[tile] = sums.template total<Store>();
    }
  }

  // Multiplies the weights of the steps of a granule with the values.
  __device__ void add_values(const Segment& segment, int granule, int first, int end) {
    results_.for_each_output([&](int tile, int columns, int i) { results_.o[tile][columns][i] = 0.0f; });
#pragma unroll 1
    for (int step = first; step < end; ++step) {
      const int key = granule * kGranule + step * kStep;
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        const auto factors = *reinterpret_cast<const float2*>(&shared_.corrections[step][8 * tile + pair_]);
#pragma unroll
        for (int i = 0; i < 4 * kColumnTiles; ++i) {
          results_.o[tile][i / 4][i % 4] =
              __fmul_rn(results_.o[tile][i / 4][i % 4], i % 2 == 0 ? factors.x : factors.y);
        }
      }
      const bool has_mixed = is_mixed(segment, {key, key + kStep});
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const char* values = values_ + (step * kStep + half * kHalfKeys) * Shape::kRowBytes;
        if (!has_mixed) {
          multiply_values<false>(step, half, shared_address(values));
        } else if (ballot(multiply_values<true>(step, half, shared_address(values))) != 0) {
          add_specials(step, half, key + half * kHalfKeys, values);
        }
      }
    }
  }

  // Rows that see different keys share a matrix instruction, and 0 * NaN is NaN. So if kIsMixed, infinities and NaN are
  // multiplied as 0; the return value says whether this lane saw one.
  template <bool kIsMixed>
  __device__ bool multiply_values(int step, int half, uint32_t values) {
    bool special = false;
    uint4 weights[kRowTiles];
#pragma unroll
    for (int tile = 0; tile < kRowTiles; ++tile) weights[tile] = shared_.weights[step][tile][half][lane_];
#pragma unroll
    for (int columns = 0; columns < kColumnTiles; ++columns) {
      uint32_t a[2][4];
      value_operands<Store, Shape::kRowBytes>(a, values, warp_ * Shape::kSliceColumns + 16 * columns);
      if constexpr (kIsMixed) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          special = special || has_special<Store>(a[i / 4][i % 4]);
          a[i / 4][i % 4] = without_specials<Store>(a[i / 4][i % 4]);
        }
      }
#pragma unroll
      for (int tile = 0; tile < kRowTiles; ++tile) {
        multiply_add<Store::kProduct>(results_.o[tile][columns], a[0], weights[tile].x, weights[tile].y);
        multiply_add<Store::kProduct>(results_.o[tile][columns], a[1], weights[tile].z, weights[tile].w);
      }
    }
    return special;
  }

  // Adds the infinities and NaN among the values of half a step to the rows that see them.
  __device__ void add_specials(int step, int half, int key, const char* values) {
    float sums[kRowTiles * kColumnTiles * 4];
#pragma unroll 1
    for (int i = 0; i < kRowTiles * kColumnTiles * 4; ++i) {
      const int tile = i / (4 * kColumnTiles), row = pair_ + i % 2;
      sums[i] = sum_specials(shared_.weights[step][tile][half], row, shared_.rows[8 * tile + row].visible, key, values,
                             results_.column_of(i / 4 % kColumnTiles, i % 4));
    }
    results_.for_each_output([&](int tile, int columns, int i) {
      float& o = results_.o[tile][columns][i];
      o = __fadd_rn(o, sums[(tile * kColumnTiles + columns) * 4 + i]);
    });
  }
  // The sum of weight * value over the values of a column that are infinite or NaN and that the row of a tile sees.
  __device__ static float sum_specials(const uint4 (&weights)[32], int row, const Visible& visible, int key,
                                       const char* values, int column) {
    float sum = 0.0f;
#pragma unroll 1
    for (int i = 0; i < kHalfKeys; ++i) {
      const float value = value_at<Store, Shape::kRowBytes>(values, i, column);
      if (fabsf(value) < -kNoScore || !visible.sees(key + i)) continue;
      const auto* words = reinterpret_cast<const uint32_t*>(&weights[4 * row + i % 8 / 2]);
      const auto weight = static_cast<uint16_t>(words[i / 8] >> i % 2 * 16);
      sum = __fmaf_rn(load_float16(weight, Store::kProduct), value, sum);
    }
    return sum;
  }

  const AttentionProblem& p_;
  Scoring scoring_;
  Shared& shared_;
  const char *keys_, *values_;
  float* stored_;
  const int warp_, lane_, group_, pair_;
  GranuleLoader<Store, kHeadSize> loader_;
  int parity_ = 0;            // of the number of granules so far
  float factors_[kRowTiles];  // of row group_ of each tile
  ClusterResults<Store, kHeadSize, kRows> results_;
};

template <class Store, int kHeadSize, int kRows>
__global__ void MULTIKV_LAUNCH_BOUNDS((ClusterShape<Store, kHeadSize>::kThreads), 3)
    cluster_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p) {
  if constexpr (kCompilesClusters) {
    using Memory = ClusterMemory<Store, kHeadSize, kRows>;
    constexpr int kTileBytes = ClusterShape<Store, kHeadSize>::kTileBytes;
    extern __shared__ __align__(128) char memory[];
    auto& shared = *reinterpret_cast<ClusterShared<Store, kHeadSize, kRows>*>(memory + 2 * kTileBytes);
    auto* results = reinterpret_cast<float*>(memory + 2 * kTileBytes + Memory::kSharedBytes);
    ClusterAttention<Store, kHeadSize, kRows>(p, shared, memory, memory + kTileBytes, results).run();
  }
}

}  // namespace multikv::gpu
