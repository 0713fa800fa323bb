// The warpgroup that loads keys and values for warpgroup_kernel.cuh, several steps ahead of their use.
#pragma once

#include "cuda/attention/warpgroup_tiles.cuh"

namespace multikv::gpu {

// Each warp loads 16 keys of a step and their values. Lane i looks up key i % 16; i / 16 says whether it computes the
// offset of the key or of the value.
template <class Store, int kHeadSize>
class WarpgroupLoader {
  using Shared = WarpgroupShared<kHeadSize>;
  using Tile = SwizzledTile<kHeadSize>;
  static constexpr int kWarpKeys = kStep / 4;
  static constexpr uint32_t kNowhere = ~uint32_t{0};

 public:
  __device__ WarpgroupLoader(const AttentionProblem& p, Shared& shared)
      : p_(p), shared_(shared), warp_(threadIdx.x / 32 % 4), lane_(threadIdx.x % 32), keys_(key_copier()),
        values_(value_copier()) {}

  __device__ void run() {
    for (int round = 0;; ++round) {
      const int slot = round % 2;
      if (warp_ == 0) {
        shared_.is_segment_free[slot].wait(round / 2 % 2 ^ 1);
        const Segment segment = shared_.tiles.find(p_, tile_of_round(round, blockIdx.x, gridDim.x));
        if (lane_ == 0) {
          shared_.segments[slot] = segment;
          shared_.has_segment[slot].arrive();
        }
      }
      shared_.has_segment[slot].wait(round / 2 % 2);
      const Segment& segment = shared_.segments[slot];
      if (segment.num_rows == 0) return;
      load_tile(segment);
      sync_warp();
      if (lane_ == 0) shared_.is_segment_free[slot].arrive();
    }
  }

 private:
  __device__ void load_tile(const Segment& segment) {
    const Range keys = segment.keys();
    if (keys.size() == 0) return;
    look_up(segment, keys.begin);
#pragma unroll 1
    for (int key = keys.begin; key < keys.end; key += kStep) {
      const uint32_t vector = locate(segment);
      look_up(segment, key + kStep);
      const uint32_t stage = step_ % kWarpgroupStages;
      if constexpr (Store::kIsFp8) {
        Codes codes[2];
        load_codes(codes[0], p_.key, vector, 0, p_.key_size);
        load_codes(codes[1], p_.value, vector, kWarpKeys, p_.value_size);
        wait_for_stage(stage, vector);
        store_keys(codes[0], stage);
        store_values(codes[1], stage);
        finish_step(stage);
      } else {
        wait_for_stage(stage, vector);
        const uint32_t tiles = shared_address(shared_.stages[stage]);
        keys_.copy(vector, 0, tiles);
        values_.copy(vector, kWarpKeys, tiles + Tile::kBytes);
        commit_copies();
        if (key > keys.begin) {
          wait_for_copies<1>();
          finish_step((step_ - 1) % kWarpgroupStages);
        }
      }
      ++step_;
    }
    if constexpr (!Store::kIsFp8) {
      wait_for_copies<0>();
      finish_step((step_ - 1) % kWarpgroupStages);
    }
  }

  __device__ void wait_for_stage(uint32_t stage, uint32_t vector) {
    shared_.is_free[stage].wait(step_ / kWarpgroupStages % 2 ^ 1);
    const uint32_t valid = ballot(vector != kNowhere);
    if (lane_ == 0) shared_.valid[stage][warp_] = static_cast<uint16_t>(valid);
  }
  __device__ void finish_step(uint32_t stage) {
    publish_to_matrix_instructions();
    shared_.is_loaded[stage].arrive();
  }

  // Issues the load of the block id of this lane's key.
  __device__ void look_up(const Segment& segment, int step_key) {
    const int key = step_key + kWarpKeys * warp_ + lane_ % kWarpKeys;
    const Range readable = segment.visible.any;
    id_ = {};
    if (key < readable.begin || key >= readable.end) return;
    const int block = small_quotient(key, p_.blocks.block_size);
    slot_ = key - block * static_cast<int>(p_.blocks.block_size.value);
    id_ = PrefetchedIndex(p_.sequences.block_table, segment.sequence_index * p_.sequences.block_table.stride + block);
  }
  // Returns the offset of this lane's key or value in vectors of 16 bytes, or kNowhere.
  __device__ uint32_t locate(const Segment& segment) const {
    const int64_t id = id_.value();
    if (id < 0 || id >= p_.blocks.num_blocks) return kNowhere;
    const bool is_value = lane_ >= kWarpKeys;
    const uint32_t block = is_value ? p_.value.block_vectors : p_.key.block_vectors;
    const uint32_t head = is_value ? p_.value.head_vectors : p_.key.head_vectors;
    const uint32_t slot = is_value ? p_.value.slot_vectors : p_.key.slot_vectors;
    return static_cast<uint32_t>(id) * block + segment.kv_head * head + slot_ * slot;
  }

  // What a lane copies of several keys or values: one element of kPieceBytes, kLanes of which are an entry of the cache.
  template <int kPieceBytes>
  struct Copier {
    static constexpr int kLanes = kHeadSize * 2 / kPieceBytes, kKeysAtOnce = 32 / kLanes;
    const char* from;  // of the entry at the start of the cache
    uint32_t to;       // of the warp's first entry, in a tile at 0; of row `first` of 8 rows
    bool is_inside;    // the lane's piece is not past the end of the entry

    // Copies the warp's entries to a tile. Lane first_lane + i knows the offset of entry i.
    __device__ void copy(uint32_t vector, int first_lane, uint32_t tile) const {
      const int first = kLanes == 32 ? 0 : threadIdx.x % 32 / kLanes;
#pragma unroll
      for (int i = 0; i < kWarpKeys; i += kKeysAtOnce) {
        const uint32_t at = shuffle(vector, first_lane + i + first);
        // Rows i and i + 8 of a tile have the same permutation of chunks, and a tile is aligned.
        const uint32_t address = (tile + to ^ i % 8 * kChunkBytes) + i * Tile::kRowBytes;
        const char* source = from + uint64_t{at} * kChunkBytes;
        if constexpr (kPieceBytes == 8) copy_async_8(address, source, at != kNowhere && is_inside);
        else copy_async(address, source, at != kNowhere && is_inside);
      }
    }
  };
  using KeyCopier = Copier<8>;
  using ValueCopier = Copier<16>;

  __device__ KeyCopier key_copier() const {
    const int piece = lane_ % KeyCopier::kLanes, row = kWarpKeys * warp_ + lane_ / KeyCopier::kLanes;
    return {opaque(p_.key.data + piece / 2 * p_.key.stride_chunk_bytes + piece % 2 * 8),
            place_offset_bytes<kHeadSize>(row, place_of_piece<Store>(piece)), opaque(4 * piece < p_.key_size) != 0};
  }
  __device__ ValueCopier value_copier() const {
    const int chunk = lane_ % ValueCopier::kLanes, row = kWarpKeys * warp_ + lane_ / ValueCopier::kLanes;
    return {opaque(p_.value.data + chunk * p_.value.stride_chunk_bytes), Tile::offset_bytes(row, chunk),
            opaque(8 * chunk < p_.value_size) != 0};
  }

  // fp8 codes pass through registers, and become float16 numbers.
  static constexpr int kCodeChunks = kHeadSize / 16, kCodeKeys = 32 / kCodeChunks, kCodeLoads = kWarpKeys / kCodeKeys;
  using Codes = uint32_t[kCodeLoads][4];
  __device__ void load_codes(Codes& codes, const CacheSource& cache, uint32_t vector, int first_lane, int size) {
    const int chunk = opaque(lane_) % kCodeChunks, first = opaque(lane_) / kCodeChunks;
    const char* from = cache.data + chunk * cache.stride_chunk_bytes;
#pragma unroll
    for (int i = 0; i < kCodeLoads; ++i) {
      const uint32_t at = shuffle(vector, first_lane + i * kCodeKeys + first);
      const bool is_valid = at != kNowhere && 16 * chunk < size;
#pragma unroll
      for (int word = 0; word < 4; ++word) codes[i][word] = 0;
      load_vector_if(is_valid, codes[i], from + static_cast<uint64_t>(is_valid ? at : 0) * kChunkBytes);
    }
  }
  __device__ void store_keys(const Codes& codes, uint32_t stage) {
    const int chunk = opaque(lane_) % kCodeChunks, first = opaque(lane_) / kCodeChunks;
#pragma unroll
    for (int i = 0; i < kCodeLoads; ++i) {
      const int row = kWarpKeys * warp_ + i * kCodeKeys + first;
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const int place = place_of_piece<Store>(4 * chunk + word);
        *reinterpret_cast<uint2*>(shared_.stages[stage][0] + place_offset_bytes<kHeadSize>(row, place)) =
            halves(codes[i][word]);
      }
    }
  }
  __device__ void store_values(const Codes& codes, uint32_t stage) {
    const int chunk = opaque(lane_) % kCodeChunks, first = opaque(lane_) / kCodeChunks;
#pragma unroll
    for (int i = 0; i < kCodeLoads; ++i) {
      const int row = kWarpKeys * warp_ + i * kCodeKeys + first;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint2 low = halves(codes[i][2 * half]), high = halves(codes[i][2 * half + 1]);
        *reinterpret_cast<uint4*>(shared_.stages[stage][1] + Tile::offset_bytes(row, 2 * chunk + half)) = {
            low.x, low.y, high.x, high.y};
      }
    }
  }
  __device__ static uint2 halves(uint32_t codes) {
    return {halves_from_fp8<Store::kElement>(codes), halves_from_fp8<Store::kElement>(codes >> 16)};
  }

  const AttentionProblem& p_;
  Shared& shared_;
  const int warp_, lane_;
  const KeyCopier keys_;  // not used for fp8
  const ValueCopier values_;
  uint32_t step_ = 0;   // of all tiles
  PrefetchedIndex id_;  // of the next step
  int slot_ = 0;
};

}  // namespace multikv::gpu
