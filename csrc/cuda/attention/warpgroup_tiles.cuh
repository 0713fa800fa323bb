// What the warps of a thread block of warpgroup_kernel.cuh share: tiles in shared memory, barriers, and the list of the
// tiles that the thread block attends for.
#pragma once

#include "cuda/attention/tile_rows.cuh"
#include "vendor/warpgroup.cuh"

namespace multikv::gpu {

// One warpgroup loads keys and values, the others attend for kWarpgroupRows rows each.
inline constexpr int kAttendingWarpgroups = 2, kWarpgroupRows = 64;
inline constexpr int kWarpgroupTileRows = kAttendingWarpgroups * kWarpgroupRows;
inline constexpr int kWarpgroupKernelThreads = (1 + kAttendingWarpgroups) * kWarpgroupThreads;
inline constexpr int kAttendingWarps = kWarpgroupTileRows / 16;

// A tile of 64 rows of kHeadSize 16-bit elements, as tile_descriptor() describes it: parts of 64 columns.
template <int kHeadSize>
struct SwizzledTile {
  static constexpr int kRowBytes = 128, kBlockBytes = 8 * kRowBytes, kPartBytes = 64 * kRowBytes;
  static constexpr int kBytes = kHeadSize / 64 * kPartBytes;

  // The offset of a chunk of 16 bytes.
  __device__ static uint32_t offset_bytes(int row, int chunk) {
    return chunk / 8 * kPartBytes + row * kRowBytes + ((chunk ^ row) & 7) * kChunkBytes;
  }
};

// Four neighbouring elements of a key or a query are a piece. The matrix instructions of tile_math.cuh take pieces from
// four chunks, so that tiles hold pieces in this order. Returns where a tile of keys or queries holds a piece.
template <class Store>
__device__ constexpr int place_of_piece(int piece) {
  constexpr int kSteps = kChunkSteps<Store>;
  return (piece / (4 * kSteps) * kSteps + piece % kSteps) * 4 + piece / kSteps % 4;
}
template <int kHeadSize>
__device__ inline uint32_t place_offset_bytes(int row, int place) {
  return SwizzledTile<kHeadSize>::offset_bytes(row, place / 2) + place % 2 * 8;
}

inline constexpr int kWarpgroupStages = 4;

template <int kHeadSize>
struct WarpgroupShared {
  static constexpr int kTileBytes = SwizzledTile<kHeadSize>::kBytes;
  char queries[kAttendingWarpgroups][kTileBytes];
  char stages[kWarpgroupStages][2][kTileBytes];                // keys and values of a step
  char zeros[SwizzledTile<kHeadSize>::kBlockBytes];            // values that are all 0
  uint32_t weights[kAttendingWarps][16 * kStep / 2];           // of add_specials
  TileRow rows[kWarpgroupTileRows];
  uint16_t valid[kWarpgroupStages][kStep / 16];                // which keys of a step can be read
  Segment segments[2];                                         // of two tiles in turn; no rows: there are no more tiles
  Barrier is_loaded[kWarpgroupStages], is_free[kWarpgroupStages];
  Barrier has_segment[2], is_segment_free[2];

  // One thread calls it.
  __device__ void start_barriers() {
    for (int i = 0; i < kWarpgroupStages; ++i) {
      is_loaded[i].start(kWarpgroupThreads);
      is_free[i].start(kAttendingWarps);
    }
    for (int i = 0; i < 2; ++i) {
      has_segment[i].start(1);
      is_segment_free[i].start(kWarpgroupThreads / 32 + kAttendingWarps);
    }
  }
};

// Finds the tiles of WholeTiles by their numbers. All lanes of a warp call it.
class TileList {
 public:
  // Returns a tile; the numbers of successive calls ascend. num_rows is 0 if there is no such tile.
  __device__ Segment find(const AttentionProblem& p, int64_t number) {
    while (number >= before_ + shuffle(inclusive_, 31)) {
      if (next_ >= p.sequences.num_sequences) return {};
      read_counts(p);
    }
    const int64_t in_batch = number - before_;
    const int index = __popc(ballot(inclusive_ <= in_batch));
    const int64_t first = shuffle(inclusive_, max(index - 1, 0));
    return tile_of(p, next_ - 32 + index, static_cast<int>(in_batch - (index == 0 ? 0 : first)));
  }

 private:
  // Reads the numbers of tiles of the next 32 sequences.
  __device__ void read_counts(const AttentionProblem& p) {
    before_ += shuffle(inclusive_, 31);
    const int lane = threadIdx.x % 32;
    const int64_t index = next_ + lane;
    inclusive_ = 0;
    if (index < p.sequences.num_sequences) {
      inclusive_ = SequenceUnits<WholeTiles>(p, sequence_of(p, index)).count(p);
    }
#pragma unroll 1
    for (int distance = 1; distance < 32; distance *= 2) {
      const int64_t other = shuffle(inclusive_, max(lane - distance, 0));
      if (lane >= distance) inclusive_ += other;
    }
    next_ += 32;
  }

  // Tiles that see the most keys come first.
  __device__ static Segment tile_of(const AttentionProblem& p, int64_t index, int number) {
    Segment segment{};
    segment.sequence_index = index;
    segment.sequence = sequence_of(p, index);
    const SequenceUnits<WholeTiles> units(p, segment.sequence);
    const int heads = static_cast<int>(p.num_kv_heads), later = number / heads;
    segment.kv_head = number - later * heads;
    segment.first_row = (units.num_tiles - 1 - later) * p.tile_rows;
    segment.num_rows = min(p.tile_rows, segment.sequence.num_rows(p) - segment.first_row);
    segment.visible = visible_to(p, segment.sequence, small_quotient(segment.first_row, p.group),
                                 small_quotient(segment.first_row + segment.num_rows - 1, p.group));
    segment.granules = segment.tile_granules = units.granules;
    segment.is_whole = true;
    return segment;
  }

  int64_t before_ = 0;     // tiles before the batch of 32 sequences
  int64_t inclusive_ = 0;  // tiles of the batch's sequences up to the lane's
  int64_t next_ = 0;       // the sequence after the batch
};

// Workers take tiles in turn, back and forth, so that each has long tiles and short ones. Returns the number of a
// worker's tile.
__device__ inline int64_t tile_of_round(int round, int worker, int num_workers) {
  return static_cast<int64_t>(round) * num_workers + (round % 2 == 0 ? worker : num_workers - 1 - worker);
}

}  // namespace multikv::gpu
