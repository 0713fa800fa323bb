// Divides the work of a call over thread blocks.
//
// A tile is Shape::kRows rows of one kv head of one sequence. Its units are the granules that the sequence's rows may
// see, or a single unit if they see none. All units of all tiles form one list, ordered by sequence, kv head, tile and
// granule; every thread block takes an equal share of neighbouring units. Thread blocks read the lengths themselves.
#pragma once

#include "cuda/attention/sequences.cuh"

namespace multikv::gpu {

// The shape of a kernel's tiles and thread blocks. With kIsWhole, tiles are not split: a tile has one unit, and those
// that see most keys come first.
template <int kRows_, int kThreads_, bool kIsWhole_>
struct TileShape {
  static constexpr int kRows = kRows_, kThreads = kThreads_;
  static constexpr bool kIsWhole = kIsWhole_;
};

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

// The shares of the thread blocks in `total` units: they differ by at most 1.
struct Shares {
  int64_t total, smaller, num_larger;

  __device__ explicit Shares(int64_t total)
      : total(total), smaller(total / gridDim.x), num_larger(total - smaller * gridDim.x) {}
  __device__ int64_t begin(int64_t block) const { return block * smaller + min(block, num_larger); }
  __device__ int64_t block_of(int64_t unit) const {
    const int64_t in_larger = num_larger * (smaller + 1);
    return unit < in_larger ? unit / (smaller + 1) : num_larger + (unit - in_larger) / smaller;
  }
};

// The place of a thread block's first unit.
struct WorkStart {
  int64_t total;     // units of all sequences
  int64_t sequence;  // the sequence of the first unit
  int64_t before;    // units of the sequences before
};

// Finds the first unit of this thread block. All threads call it, and all get the same result.
template <class Shape>
__device__ WorkStart find_start(const AttentionProblem& p) {
  __shared__ int64_t warp_sums[Shape::kThreads / 32];
  __shared__ WorkStart start;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int64_t per_thread = ceil_div<int64_t>(p.sequences.num_sequences, Shape::kThreads);
  const int64_t first = thread * per_thread, last = min(first + per_thread, p.sequences.num_sequences);
  const auto units_of = [&p](int64_t s) { return SequenceUnits<Shape>(p, sequence_of(p, s)).count(p); };
  int64_t sum = 0;
  for (int64_t s = first; s < last; ++s) sum += units_of(s);
  int64_t inclusive = sum;
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = shuffle(inclusive, max(lane - distance, 0));
    if (lane >= distance) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int64_t before = inclusive - sum, total = 0;
  for (int w = 0; w < Shape::kThreads / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  const int64_t unit = Shares(total).begin(blockIdx.x);
  if (unit >= before && unit < before + sum) {
    int64_t s = first;
    for (int64_t units = units_of(s); unit >= before + units; units = units_of(++s)) before += units;
    start = {total, s, before};
  }
  if (thread == 0 && unit >= total) start = {total, p.sequences.num_sequences, total};
  __syncthreads();
  return start;
}

// Neighbouring granules of one tile, which a thread block attends over.
struct Segment {
  int64_t sequence_index;
  Sequence sequence;
  int kv_head;
  int first_row, num_rows;  // of the tile
  TokenGroup visible;       // to the tile's rows
  Range tile_granules;      // of the whole tile
  Range granules;           // of this segment
  int64_t tile_unit;        // the tile's first unit
  bool is_whole;            // no other thread block has units of the tile

  // The steps of the segment, as positions of keys: multiples of kStep.
  __device__ Range keys() const {
    const Range keys = intersection(visible.any, {granules.begin * kGranule, granules.end * kGranule});
    return keys.size() == 0 ? Range{0, 0} : Range{keys.begin / kStep * kStep, keys.end};
  }
};

// Enumerates the segments of this thread block. It lies in shared memory, to save registers: one thread moves it on.
template <class Shape>
class Segments {
 public:
  Segments() = default;
  __device__ void start(const AttentionProblem& p, const WorkStart& start) {
    const Shares shares(start.total);
    may_split_ = !Shape::kIsWhole && start.total <= p.num_slots;
    begin_ = shares.begin(blockIdx.x);
    end_ = shares.begin(blockIdx.x + 1);
    sequence_ = start.sequence;
    before_ = start.before;
    tile_ = 0;
    enter(p);
    if (sequence_ < p.sequences.num_sequences) tile_ = static_cast<int>((begin_ - before_) / per_tile_);
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
    const auto token_of = [&p](int row) { return static_cast<int>(quotient_of(row, p.group)); };
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

  // Moves on to a tile of which this thread block has units: those that begin in its share, if tiles are not split.
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
