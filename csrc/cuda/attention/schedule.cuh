// Divides the work of a call over thread blocks.
//
// A tile is p.tile_rows rows of one kv head of one sequence. Its units are the granules that the sequence's rows may
// see, or a single unit if they see none. All units of all tiles form one list, ordered by sequence, then kv head, tile
// and granule (WholeTiles have another order within a sequence). Every worker takes an equal share of neighbouring
// units. A worker is a thread block. Workers read the lengths themselves.
#pragma once

#include "cuda/attention/sequences.cuh"

namespace multikv::gpu {

// How a kernel divides tiles. If kIsWhole, tiles are not split: a tile has one unit. The tiles of a sequence are then
// ordered from the last rows, which see the most keys if attention is causal, to the first rows, and by kv head.
template <bool kIsWhole_>
struct TileShape {
  static constexpr bool kIsWhole = kIsWhole_;
};
using SplitTiles = TileShape<false>;
using WholeTiles = TileShape<true>;

// The units of one sequence.
template <class Shape>
struct SequenceUnits {
  Range granules;
  int num_tiles;  // 0 if the kernel does not serve the sequence

  __device__ SequenceUnits(const AttentionProblem& p, const Sequence& sequence) : granules{0, 0}, num_tiles(0) {
    const int rows = sequence.num_rows(p);
    if (rows == 0 || rows < p.min_rows || rows > p.max_rows) return;
    num_tiles = (rows + p.tile_rows - 1) / p.tile_rows;
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

// A worker and its first unit.
struct WorkStart {
  int64_t worker, num_workers;
  int64_t total;     // units of all sequences
  int64_t sequence;  // the sequence of the first unit
  int64_t before;    // units of the sequences before
  int tile;          // the first unit's tile: its number among the sequence's tiles

  __device__ Shares shares() const { return {total, num_workers}; }
  __device__ bool is_idle() const { return shares().begin(worker) == shares().begin(worker + 1); }
};

// Returns the sum of `value` over the threads before this one, and in `total` that of all threads. All threads of a
// thread block of at most kMaxWarps warps call it.
inline constexpr int kMaxWarps = 8;
__device__ inline int64_t sum_before(int64_t value, int64_t& total) {
  __shared__ int64_t warp_sums[kMaxWarps];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int64_t inclusive = value;
#pragma unroll 1
  for (int distance = 1; distance < 32; distance *= 2) {
    const int64_t other = shuffle(inclusive, max(lane - distance, 0));
    if (lane >= distance) inclusive += other;
  }
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int64_t before = inclusive - value;
  total = 0;
#pragma unroll 1
  for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    total += warp_sums[w];
  }
  return before;
}

// Finds the first unit of a worker. All threads of a thread block call it, and may read the result, which lies in
// shared memory.
template <class Shape>
__device__ const WorkStart& find_start(const AttentionProblem& p, int64_t worker, int64_t num_workers) {
  __shared__ WorkStart start;
  const int64_t num_sequences = p.sequences.num_sequences, threads = blockDim.x;
  const int64_t per_thread = divide(num_sequences + threads - 1, threads), first = threadIdx.x * per_thread;
  int64_t last = min(first + per_thread, num_sequences), before = 0, unit = 0, total = 0;
  // The first pass adds up the units, the second one finds the sequence of the worker's first unit.
#pragma unroll 1
  for (int pass = 0; pass < 2; ++pass) {
    int64_t at = before;
#pragma unroll 1
    for (int64_t s = first; s < last; ++s) {
      const SequenceUnits<Shape> units(p, sequence_of(p, s));
      const int64_t count = units.count(p);
      if (pass == 1 && unit >= at && unit < at + count) {
        start = {worker, num_workers, total, s, at, static_cast<int>(divide(unit - at, units.per_tile()))};
      }
      at += count;
    }
    if (pass == 1) break;
    const int64_t sum = at;
    before = sum_before(sum, total);
    unit = Shares(total, num_workers).begin(worker);
    if (threadIdx.x == 0 && unit >= total) start = {worker, num_workers, total, num_sequences, total, 0};
    if (unit < before || unit >= before + sum) last = first;
  }
  __syncthreads();
  return start;
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
  bool is_whole;            // no other worker attends over keys of the tile

  // The positions of the segment's keys. The begin is rounded down to a multiple of kStep, at which the first step
  // begins.
  __device__ Range keys() const {
    const Range keys = intersection(visible.any, {granules.begin * kGranule, granules.end * kGranule});
    return keys.size() == 0 ? Range{0, 0} : Range{keys.begin / kStep * kStep, keys.end};
  }
};

// Sets the fields of a segment that say which rows it has. The tiles of a kv head of the sequence are numbered from 0,
// and `tile` is such a number.
__device__ inline void set_rows(const AttentionProblem& p, Segment& segment, int kv_head, int tile) {
  segment.kv_head = kv_head;
  segment.first_row = tile * p.tile_rows;
  segment.num_rows = min(p.tile_rows, segment.sequence.num_rows(p) - segment.first_row);
  segment.visible = visible_to(p, segment.sequence, small_quotient(segment.first_row, p.group),
                               small_quotient(segment.first_row + segment.num_rows - 1, p.group));
}

// The part of a tile that the calling thread block of the cluster kernel attends over. That kernel needs no list of
// units: every tile has a cluster of p.tile_blocks thread blocks, each with neighbouring granules. In the grid, x is
// the thread block's number in its cluster, y the tile among those of all kv heads of a sequence, and z the sequence.
struct TilePart {
  int number;  // the thread block's number among those of the tile
  int64_t sequence;
  int kv_head, tile;  // the tiles of a kv head of a sequence are numbered from 0

  __device__ explicit TilePart(const AttentionProblem& p)
      : number(static_cast<int>(blockIdx.x)), sequence(blockIdx.z), kv_head(static_cast<int>(blockIdx.y)), tile(0) {
    if (p.tiles_per_head == 1) return;
    kv_head = static_cast<int>(blockIdx.y / static_cast<unsigned>(p.tiles_per_head));
    tile = static_cast<int>(blockIdx.y) - kv_head * p.tiles_per_head;
  }
};

// The granules of thread block `number` of a cluster of num_blocks.
__device__ inline Range granules_of_block(Range granules, int number, int num_blocks) {
  const int most = (granules.size() + num_blocks - 1) / num_blocks, begin = granules.begin + number * most;
  return {min(begin, granules.end), min(begin + most, granules.end)};
}

// Writes the segment of the thread block's part. Returns false if the tile has no rows. One thread calls it.
__device__ inline bool take_part(const AttentionProblem& p, const TilePart& part, Segment& segment) {
  segment.sequence_index = part.sequence;
  segment.sequence = sequence_of(p, part.sequence);
  const SequenceUnits<SplitTiles> units(p, segment.sequence);
  if (part.tile >= units.num_tiles) return false;
  set_rows(p, segment, part.kv_head, part.tile);
  segment.tile_unit = 0;
  segment.tile_granules = units.granules;
  segment.granules = granules_of_block(units.granules, part.number, p.tile_blocks);
  segment.is_whole = false;
  return true;
}

// Enumerates the segments of a worker. One thread of the thread block uses it.
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
    tile_ = start.tile;
    is_entered_ = false;
  }

  // Writes the next segment, or returns false.
  __device__ bool take(const AttentionProblem& p, Segment& segment) {
    if (!find_tile(p)) return false;
    segment.sequence_index = sequence_;
    segment.sequence = sequence_info_;
    int kv_head = tile_ / tiles_per_head_, tile = tile_ - kv_head * tiles_per_head_;
    if (Shape::kIsWhole) {
      const int tiles_later = tile_ / static_cast<int>(p.num_kv_heads);
      kv_head = tile_ - tiles_later * static_cast<int>(p.num_kv_heads);
      tile = tiles_per_head_ - 1 - tiles_later;
    }
    set_rows(p, segment, kv_head, tile);
    segment.tile_unit = first_unit();
    segment.tile_granules = granules_;
    segment.granules = granules_;
    segment.is_whole = true;
    if (may_split_) {
      const int64_t first = max(begin_ - first_unit(), int64_t{0}), last = min(end_ - first_unit(), int64_t{per_tile_});
      segment.granules = {granules_.begin + static_cast<int>(first), granules_.begin + static_cast<int>(last)};
      segment.is_whole = first == 0 && last == per_tile_;
    }
    ++tile_;
    return true;
  }

 private:
  __device__ int64_t first_unit() const { return before_ + static_cast<int64_t>(tile_) * per_tile_; }

  // Moves on to the next tile that this worker attends over. Returns false if there is none. If tiles may be split, the
  // worker has a part of every tile with units in its share; otherwise it has the tiles whose first unit is in its
  // share.
  __device__ bool find_tile(const AttentionProblem& p) {
    while (sequence_ < p.sequences.num_sequences) {
      if (!is_entered_) enter(p);
      while (!may_split_ && tile_ < num_tiles_ && first_unit() < begin_) ++tile_;
      if (tile_ < num_tiles_) return first_unit() < end_;
      before_ += static_cast<int64_t>(num_tiles_) * per_tile_;
      ++sequence_;
      tile_ = 0;
      is_entered_ = false;
    }
    return false;
  }

  // Reads the lengths of the current sequence.
  __device__ void enter(const AttentionProblem& p) {
    sequence_info_ = sequence_of(p, sequence_);
    const SequenceUnits<Shape> units(p, sequence_info_);
    tiles_per_head_ = units.num_tiles;
    num_tiles_ = static_cast<int>(p.num_kv_heads) * units.num_tiles;
    granules_ = units.granules;
    per_tile_ = units.per_tile();
    is_entered_ = true;
  }

  bool may_split_, is_entered_;
  int64_t begin_, end_;  // the share
  int64_t sequence_, before_;
  Sequence sequence_info_;
  Range granules_;
  int tiles_per_head_, num_tiles_, per_tile_;
  int tile_;
};

}  // namespace multikv::gpu
