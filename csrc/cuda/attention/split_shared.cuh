// How the warps of a thread block of the split kernel share their work, and what they share in memory.
#pragma once

#include "cuda/attention/cache_tiles.cuh"
#include "cuda/attention/tile_rows.cuh"

namespace multikv::gpu {

// How the warps of a thread block of the split kernel share a step of kStep keys. A warp multiplies the queries with
// kWarpKeys keys, and the weights of all keys with a slice of the values: kSliceBytes of each value.
//
//            of every 16 keys or values, lane i holds            and of each of these
//   keys     i / 4 and i / 4 + 8                                 chunk i % 4 of every four chunks
//   values   pair, pair + 1, pair + 8 and pair + 9,              the kLaneBytes of the warp's slice that begin at byte
//            where pair = i % 4 * 2                              i / 4 * kLaneBytes
template <class Store, int kHeadSize>
struct SplitShape {
  static constexpr int kRowBytes = kHeadSize * Store::kBytes;
  static constexpr int kWarps = kRowBytes >= 256 ? 4 : kRowBytes / 64, kThreads = 32 * kWarps;
  static constexpr int kWarpKeys = kStep / kWarps, kKeyTiles = kWarpKeys / 16;
  static constexpr int kChunkGroups = kRowBytes / (4 * kChunkBytes);
  static constexpr int kSliceBytes = kRowBytes / kWarps, kSliceColumns = kSliceBytes / Store::kBytes;
  static constexpr int kLaneBytes = kSliceBytes / 8, kLaneColumns = kLaneBytes / Store::kBytes;
  static constexpr int kStagingBytes = kStep * kSliceBytes;  // of a warp, for caches without vectors
};

// A kernel serves tiles of kRows query rows: 8 or 16.
template <class Store, int kHeadSize, int kRows>
struct SplitShared {
  static constexpr int kColumnTiles = SplitShape<Store, kHeadSize>::kLaneColumns / 2;
  static constexpr int kPitch = kStep + 8;       // so that neighbouring rows lie in different memory banks
  float scores[2][kRows][kPitch];                // of two steps in turn
  uint64_t valid[4];                             // of four steps in turn: which keys can be read
  uint2 queries[kRows / 8][kHeadSize / 16][32];  // each lane has its own operands
  TileRow rows[kRows];
  float2 total_states[SplitShape<Store, kHeadSize>::kWarps][kRows];  // m and l of the granules before, for each warp
  // o of the granules before; each thread has its own elements.
  float totals[kRows / 8][kColumnTiles][4][SplitShape<Store, kHeadSize>::kThreads];
  Segments<SplitTiles> segments;  // used by thread 0; here to save registers
  Segment segment;
  bool is_done;
};

}  // namespace multikv::gpu
