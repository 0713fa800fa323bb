// How the warps of a thread block of the cluster kernel share their work, and what they share in memory.
#pragma once

#include "cuda/attention/cache_tiles.cuh"
#include "cuda/attention/tile_rows.cuh"

namespace multikv::gpu {

// A granule has kWarps steps. Warp i copies the keys and values of step i to shared memory, multiplies the queries with
// these keys, and multiplies the weights of all steps with slice i of the values, kSliceColumns columns.
template <class Store, int kHeadSize>
struct ClusterShape {
  static constexpr int kWarps = kGranule / kStep, kThreads = 32 * kWarps;
  static constexpr int kRowBytes = kHeadSize * Store::kBytes, kChunks = kRowBytes / kChunkBytes;
  static constexpr int kStepBytes = kStep * kRowBytes, kTileBytes = kGranule * kRowBytes;
  static constexpr int kSliceColumns = kHeadSize / kWarps, kColumnTiles = kSliceColumns / 16;
};

// Offsets of the keys and values of a step, in units of 16 bytes from the start of the cache. kNowhere marks a key that
// cannot be read.
struct StepOffsets {
  static constexpr uint32_t kNowhere = ~uint32_t{0};
  alignas(16) uint32_t keys[kStep];
  alignas(16) uint32_t values[kStep];
};

// A kernel serves tiles of kRows query rows: 8 or 16.
template <class Store, int kHeadSize, int kRows>
struct ClusterShared {
  static constexpr int kWarps = ClusterShape<Store, kHeadSize>::kWarps, kTiles = kRows / 8;
  // `scores` has the scores of 8 rows with half of each warp's step. kPitch puts rows that are read together into
  // different memory banks.
  static constexpr int kHalf = kStep / 2, kPitch = kHalf + 8;
  uint4 weights[kWarps][kTiles][kStep / 32][32];  // of each step of a granule; each lane has its own operands
  uint2 queries[kTiles][kHeadSize / 16][32];      // each lane has its own operands
  float scores[kWarps][8][kPitch];
  float largest[2][kWarps][kRows];   // of two granules in turn: the largest score of each step
  float corrections[kWarps][kRows];  // of o and l before each step (correction_of)
  float sums[kWarps][kTiles][32];    // of the weights of each step; each lane has its own part
  TileRow rows[kRows];
  StepOffsets offsets[kWarps];
  Segment segment;
  bool has_rows;
};

// The dynamic shared memory of a thread block: the keys and the values of a granule, ClusterShared, and the results of
// num_results granules. Each thread stores kNumbers numbers of a result.
template <class Store, int kHeadSize, int kRows>
struct ClusterMemory {
  using Shape = ClusterShape<Store, kHeadSize>;
  static constexpr int kNumbers = kRows / 8 * (2 + 4 * Shape::kColumnTiles);
  static constexpr int kResultBytes = kNumbers * Shape::kThreads * 4;
  static constexpr int kSharedBytes = (sizeof(ClusterShared<Store, kHeadSize, kRows>) + 127) / 128 * 128;
  static constexpr int bytes(int num_results) {
    return 2 * Shape::kTileBytes + kSharedBytes + num_results * kResultBytes;
  }
};

}  // namespace multikv::gpu
