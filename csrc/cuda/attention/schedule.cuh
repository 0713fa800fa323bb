// Divides the work of a call over thread blocks.
//
// A tile is Shape::kRows rows of one kv head of one sequence. Its units are the granules that the sequence's rows may
// see, or a single unit if they see none. All units of all tiles form one list, ordered by sequence, kv head, tile and
// granule; every worker takes an equal share of neighbouring units. A worker is a warp or a thread block. Workers read
// the lengths themselves.
#pragma once

#include "cuda/attention/sequences.cuh"

namespace multikv::gpu {

// The shape of a kernel's tiles. With kIsWhole, tiles are not split: a tile has one unit, and those that see most keys
// come first.
template <int kRows_, bool kIsWhole_>
struct TileShape {
  static constexpr int kRows = kRows_;
  static constexpr bool kIsWhole = kIsWhole_;
};

// The tiles of the kernels that split tiles over workers.
using SplitTileShape = TileShape<16, false>;

// The units of one sequence.
template <class Shape>
struct SequenceUnits {
  Range granules;
  int num_tiles;  // 0 if the kernel does not serve the sequence

  __device__ SequenceUnits(const AttentionProblem& p, const Sequence& sequence) : granules{0, 0}, num_tiles(0) {
    const int rows = sequence.num_rows(p);
    if (rows == 0 || rows < p.min_rows || rows > p.max_rows) return;
    num_tiles = (rows + Shape::kRows - 1) / Shape::kRows;
    granules = granules_of(visible_to(p, sequence, 0, sequence.num_tokens - 1).any);
  }
  __device__ int per_tile() const { return Shape::kIsWhole ? 1 : max(granules.size(), 1); }
  __device__ int64_t count(const AttentionProblem& p) const { return p.num_kv_heads * num_tiles * per_tile(); }
};

// The shares of the workers in `total` units: they differ by at most 1.
struct Shares {
  int64_t total, smaller, num_larger;

  __device__ Shares(int64_t total, int64_t num_workers)
      : total(total), smaller(divide(total, num_workers)), num_larger(total - smaller * num_workers) {}
  __device__ int64_t begin(int64_t worker) const { return worker * smaller + min(worker, num_larger); }
  __device__ int64_t worker_of(int64_t unit) const {
    const int64_t in_larger = num_larger * (smaller + 1);
    return unit < in_larger ? divide(unit, smaller + 1) : num_larger + divide(unit - in_larger, smaller);
  }
};

// A worker and the place of its first unit.
struct WorkStart {
  int64_t worker, num_workers;
  int64_t total;     // units of all sequences
  int64_t sequence;  // the sequence of the first unit
  int64_t before;    // units of the sequences before

  __device__ Shares shares() const { return {total, num_workers}; }
  __device__ bool is_idle() const { return shares().begin(worker) == shares().begin(worker + 1); }
};

// Finds the first units of `count` neighbouring workers, at most kMaxWarps. All threads of a thread block call it, and
// may read the result, which lies in shared memory.
inline constexpr int kMaxWarps = 8;
template <class Shape>
__device__ const WorkStart* find_starts(const AttentionProblem& p, int64_t first_worker, int count,
                                        int64_t num_workers) {
  __shared__ int64_t warp_sums[kMaxWarps];
  __shared__ WorkStart starts[kMaxWarps];
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, threads = blockDim.x;
  const int64_t per_thread = divide(p.sequences.num_sequences + threads - 1, threads);
  const int64_t first = thread * per_thread, last = min(first + per_thread, p.sequences.num_sequences);
  const auto units_of = [&p](int64_t s) { return SequenceUnits<Shape>(p, sequence_of(p, s)).count(p); };
  int64_t sum = 0;
#pragma unroll 1
  for (int64_t s = first; s < last; ++s) sum += units_of(s);
  int64_t inclusive = sum;
#pragma unroll 1
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = shuffle(inclusive, max(lane - distance, 0));
    if (lane >= distance) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int64_t before = inclusive - sum, total = 0;
#pragma unroll 1
  for (int w = 0; w < threads / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  const Shares shares(total, num_workers);
#pragma unroll 1
  for (int i = 0; i < count; ++i) {
    const int64_t worker = first_worker + i, unit = shares.begin(worker);
    if (unit >= before && unit < before + sum) {
      int64_t s = first, units_before = before;
      for (int64_t units = units_of(s); unit >= units_before + units; units = units_of(++s)) units_before += units;
      starts[i] = {worker, num_workers, total, s, units_before};
    }
    if (thread == 0 && unit >= total) starts[i] = {worker, num_workers, total, p.sequences.num_sequences, total};
  }
  __syncthreads();
  return starts;
}

// Neighbouring granules of one tile, which a worker attends over.
struct Segment {
  int64_t sequence_index;
  Sequence sequence;
  int kv_head;
  int first_row, num_rows;  // of the tile
  TokenGroup visible;       // to the tile's rows
  Range tile_granules;      // of the whole tile
  Range granules;           // of this segment
  int64_t tile_unit;        // the tile's first unit
  bool is_whole;            // no other worker has units of the tile

  // The steps of the segment, as positions of keys: multiples of kStep.
  __device__ Range keys() const {
    const Range keys = intersection(visible.any, {granules.begin * kGranule, granules.end * kGranule});
    return keys.size() == 0 ? Range{0, 0} : Range{keys.begin / kStep * kStep, keys.end};
  }
};

// Enumerates the segments of a worker. It lies in shared memory, to save registers: one thread moves it on.
template <class Shape>
class Segments {
 public:
  Segments() = default;
  __device__ void start(const AttentionProblem& p, const WorkStart& start) {
    const Shares shares = start.shares();
    may_split_ = !Shape::kIsWhole && start.total <= p.num_slots;
    begin_ = shares.begin(start.worker);
    end_ = shares.begin(start.worker + 1);
    sequence_ = start.sequence;
    before_ = start.before;
    tile_ = 0;
    enter(p);
    if (sequence_ < p.sequences.num_sequences) tile_ = static_cast<int>(divide(begin_ - before_, per_tile_));
    settle(p);
  }

  __device__ bool is_done() const { return is_done_; }
  __device__ void next(const AttentionProblem& p) {
    ++tile_;
    settle(p);
  }

  __device__ Segment get(const AttentionProblem& p) const {
    Segment segment;
    segment.sequence_index = sequence_;
    segment.sequence = sequence_info_;
    int kv_head = tile_ / tiles_per_head_, tile = tile_ - kv_head * tiles_per_head_;
    if (Shape::kIsWhole) {
      const int tiles_later = tile_ / static_cast<int>(p.num_kv_heads);
      kv_head = tile_ - tiles_later * static_cast<int>(p.num_kv_heads);
      tile = tiles_per_head_ - 1 - tiles_later;
    }
    segment.kv_head = kv_head;
    segment.first_row = tile * Shape::kRows;
    segment.num_rows = min(Shape::kRows, sequence_info_.num_rows(p) - segment.first_row);
    const auto token_of = [&p](int row) { return small_quotient(row, p.group); };
    segment.visible =
        visible_to(p, sequence_info_, token_of(segment.first_row), token_of(segment.first_row + segment.num_rows - 1));
    segment.tile_unit = first_unit();
    segment.tile_granules = granules_;
    segment.granules = granules_;
    segment.is_whole = true;
    if (may_split_) {
      const int64_t first = max(begin_ - first_unit(), int64_t{0}), last = min(end_ - first_unit(), int64_t{per_tile_});
      segment.granules = {granules_.begin + static_cast<int>(first), granules_.begin + static_cast<int>(last)};
      segment.is_whole = first == 0 && last == per_tile_;
    }
    return segment;
  }

 private:
  __device__ int64_t first_unit() const { return before_ + static_cast<int64_t>(tile_) * per_tile_; }

  // Reads the lengths of the current sequence, or of the next one that has units.
  __device__ void enter(const AttentionProblem& p) {
    for (; sequence_ < p.sequences.num_sequences; ++sequence_) {
      sequence_info_ = sequence_of(p, sequence_);
      const SequenceUnits<Shape> units(p, sequence_info_);
      tiles_per_head_ = units.num_tiles;
      num_tiles_ = static_cast<int>(p.num_kv_heads) * units.num_tiles;
      granules_ = units.granules;
      per_tile_ = units.per_tile();
      if (num_tiles_ != 0) return;
    }
  }

  // Moves on to a tile of which this worker has units: those that begin in its share, if tiles are not split.
  __device__ void settle(const AttentionProblem& p) {
    is_done_ = true;
    while (sequence_ < p.sequences.num_sequences) {
      if (tile_ >= num_tiles_) {
        before_ += static_cast<int64_t>(num_tiles_) * per_tile_;
        ++sequence_;
        enter(p);
        tile_ = 0;
      } else if (!may_split_ && first_unit() < begin_) {
        ++tile_;
      } else {
        is_done_ = first_unit() >= end_;
        return;
      }
    }
  }

  bool may_split_, is_done_;
  int64_t begin_, end_;  // the share
  int64_t sequence_, before_;
  Sequence sequence_info_;
  Range granules_;
  int tiles_per_head_, num_tiles_, per_tile_;
  int tile_;
};

}  // namespace multikv::gpu
