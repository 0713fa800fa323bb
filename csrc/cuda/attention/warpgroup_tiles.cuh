// What the warps of a thread block of warpgroup_kernel.cuh share: keys, values and queries in shared memory, barriers,
// and the list of all tiles of query rows.
#pragma once

#include "cuda/attention/tile_rows.cuh"
#include "vendor/warpgroup.cuh"

namespace multikv::gpu {

// One warpgroup loads keys and values, the others attend for kWarpgroupRows rows each.
inline constexpr int kAttendingWarpgroups = 2, kWarpgroupRows = 64;
inline constexpr int kWarpgroupTileRows = kAttendingWarpgroups * kWarpgroupRows;
inline constexpr int kWarpgroupKernelThreads = (1 + kAttendingWarpgroups) * kWarpgroupThreads;
inline constexpr int kAttendingWarps = kWarpgroupTileRows / 16;

// A tile of 64 rows of kHeadSize 16-bit elements. It consists of parts of 64 columns, each in the layout that
// TileDescriptor describes.
template <int kHeadSize>
struct SwizzledTile {
  static constexpr int kRowBytes = 128, kBlockBytes = 8 * kRowBytes, kPartBytes = 64 * kRowBytes;
  static constexpr int kBytes = kHeadSize / 64 * kPartBytes;

  // The offset of a chunk of 16 bytes.
  __device__ static uint32_t offset_bytes(int row, int chunk) {
    return chunk / 8 * kPartBytes + row * kRowBytes + ((chunk ^ row) & 7) * kChunkBytes;
  }
};

// Four neighbouring elements of a key or a query are a piece. A multiplication in the order of tile_math.cuh takes one
// piece from each of four neighbouring chunks. Tiles of keys and queries hold these four pieces side by side. Returns
// the place of a piece in its row: 4 * multiplication + chunk % 4.
template <class Store>
__device__ constexpr int place_of_piece(int piece) {
  constexpr int kSteps = kChunkSteps<Store>;
  return (piece / (4 * kSteps) * kSteps + piece % kSteps) * 4 + piece / kSteps % 4;
}
template <int kHeadSize>
__device__ inline uint32_t place_offset_bytes(int row, int place) {
  return SwizzledTile<kHeadSize>::offset_bytes(row, place / 2) + place % 2 * 8;
}

// Numbers the tiles of all sequences, and finds them by their numbers. First come the last tiles of all sequences,
// which see the most keys if attention is causal, then the tiles before these, and so on. A TileList lies in shared
// memory, to save registers, and all lanes of one warp use it.
class TileList {
 public:
  __device__ void start() { *this = {}; }

  // Returns a tile; the numbers of successive calls ascend. num_rows is 0 if there is no such tile.
  __device__ Segment find(const AttentionProblem& p, int64_t number) {
    const int heads = static_cast<int>(p.num_kv_heads);
    while (number >= first_ + int64_t{num_levels_} * num_active_ * heads) {
      if (is_past_end_) return {};
      enter_next_levels(p, heads);
    }
    const int64_t tile = divide(number - first_, heads);
    const auto level = static_cast<int>(divide(tile, num_active_));
    const auto kv_head = static_cast<int>(number - first_ - tile * heads);
    return tile_of(p, level_ + level, static_cast<int>(tile - int64_t{level} * num_active_), kv_head);
  }

 private:
  __device__ static int num_tiles_of(const AttentionProblem& p, int64_t sequence) {
    if (sequence >= p.sequences.num_sequences) return 0;
    return SequenceUnits<WholeTiles>(p, sequence_of(p, sequence)).num_tiles;
  }

  // Enters the next levels that have the same active sequences. A sequence with more than i tiles is active on level i:
  // level i has the i-th last tile of the sequence, counted from 0, once for each KV head.
  __device__ void enter_next_levels(const AttentionProblem& p, int heads) {
    const int level = level_ + num_levels_, lane = threadIdx.x % 32;
    int active = 0, fewest = INT32_MAX;
#pragma unroll 1
    for (int64_t s = 0; s < p.sequences.num_sequences; s += 32) {
      const int tiles = num_tiles_of(p, s + lane);
      active += __popc(ballot(tiles > level));
      if (tiles > level) fewest = min(fewest, tiles);
    }
#pragma unroll 1
    for (int distance = 16; distance > 0; distance /= 2) fewest = min(fewest, shuffle(fewest, lane ^ distance));
    sync_warp();
    if (lane == 0) {
      first_ += int64_t{num_levels_} * num_active_ * heads;
      level_ = level;
      num_levels_ = active == 0 ? 0 : fewest - level;
      num_active_ = active;
      is_past_end_ = active == 0;
    }
    sync_warp();
  }

  // Returns the tile of a level that belongs to the level's active sequence number `index`.
  __device__ static Segment tile_of(const AttentionProblem& p, int level, int index, int kv_head) {
    const int lane = threadIdx.x % 32;
    int64_t sequence = 0;
    while (true) {
      const uint32_t active = ballot(num_tiles_of(p, sequence + lane) > level);
      const auto before = static_cast<int>(__popc(active & ((1u << lane) - 1)));
      const uint32_t found = ballot((active >> lane & 1) != 0 && before == index);
      if (found != 0) {
        sequence += 31 - __clz(found);
        break;
      }
      index -= __popc(active);
      sequence += 32;
    }
    Segment segment{};
    segment.sequence_index = sequence;
    segment.sequence = sequence_of(p, sequence);
    const SequenceUnits<WholeTiles> units(p, segment.sequence);
    segment.kv_head = kv_head;
    segment.first_row = (units.num_tiles - 1 - level) * p.tile_rows;
    segment.num_rows = min(p.tile_rows, segment.sequence.num_rows(p) - segment.first_row);
    segment.visible = visible_to(p, segment.sequence, small_quotient(segment.first_row, p.group),
                                 small_quotient(segment.first_row + segment.num_rows - 1, p.group));
    segment.granules = segment.tile_granules = units.granules;
    segment.is_whole = true;
    return segment;
  }

  // Neighbouring levels with the same active sequences.
  int64_t first_;  // the number of their first tile
  int level_, num_levels_, num_active_;
  bool is_past_end_;
};

// In every round, each worker takes one tile, and every second round goes through the workers backwards, so that each
// worker has long tiles and short ones. Returns the number of a worker's tile.
__device__ inline int64_t tile_of_round(int round, int worker, int num_workers) {
  return static_cast<int64_t>(round) * num_workers + (round % 2 == 0 ? worker : num_workers - 1 - worker);
}

inline constexpr int kWarpgroupStages = 4;

template <int kHeadSize>
struct WarpgroupShared {
  static constexpr int kTileBytes = SwizzledTile<kHeadSize>::kBytes;
  char queries[kAttendingWarpgroups][kTileBytes];
  char stages[kWarpgroupStages][2][kTileBytes];      // keys and values of a step
  char zeros[SwizzledTile<kHeadSize>::kBlockBytes];  // values that are all 0
  // Each warp stores its weights for add_specials here, and then its outputs.
  alignas(16) uint32_t scratch[kAttendingWarps][16 * (kHeadSize > kStep ? kHeadSize : kStep) / 2];
  TileRow rows[kWarpgroupTileRows];
  Scoring scoring[kAttendingWarpgroups];
  uint16_t valid[kWarpgroupStages][kStep / 16];  // which keys of a step can be read
  TileList tiles;                                // used by one warp of the loader
  Segment segments[2];                           // two tiles in turn; one without rows follows the last
  Barrier is_loaded[kWarpgroupStages], is_free[kWarpgroupStages];
  Barrier has_segment[2], is_segment_free[2];

  // Initialises the tile list and the barriers; one thread calls it. Every thread that has read shared memory arrives
  // at a barrier itself. One lane could arrive for its warp after a sync_warp(), but compute-sanitizer's racecheck
  // would not see that this lane waits for the others.
  __device__ void start() {
    tiles.start();
    for (int i = 0; i < kWarpgroupStages; ++i) {
      is_loaded[i].start(kWarpgroupThreads);
      is_free[i].start(kAttendingWarpgroups * kWarpgroupThreads);
    }
    for (int i = 0; i < 2; ++i) {
      has_segment[i].start(1);
      is_segment_free[i].start(kWarpgroupKernelThreads);
    }
  }
};

}  // namespace multikv::gpu
