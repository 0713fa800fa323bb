// The warpgroup that loads keys and values for warpgroup_kernel.cuh, several steps ahead of their use.
#pragma once

#include "cuda/attention/warpgroup_tiles.cuh"

namespace multikv::gpu {

inline constexpr int kWarpKeys = kStep / 4;  // keys that a loading warp copies of each step

// Copies the warp's keys or values to tiles. A lane copies the same kPieceBytes of several keys or values: 8 bytes of
// 16-bit keys, 16 bytes of 16-bit values, or 16 fp8 codes, which are converted to float16. In this class, such a run of
// kElements elements is a piece. The pieces of place_of_piece() have four elements, so a piece of this class is one,
// two or four of them.
template <class Store, int kHeadSize, bool kIsKey>
class EntryCopier {
  using Tile = SwizzledTile<kHeadSize>;
  static constexpr int kPieceBytes = kIsKey && !Store::kIsFp8 ? 8 : 16, kElements = kPieceBytes / Store::kBytes;
  static constexpr int kLanes = kHeadSize / kElements, kEntriesAtOnce = 32 / kLanes;

 public:
  // The address of a piece in a cache, and whether the piece can be read.
  struct Source {
    const char* from;
    bool is_valid;
  };
  // The fp8 codes of the lane's pieces of a step.
  using Codes = uint32_t[kWarpKeys / kEntriesAtOnce][4];

  __device__ EntryCopier(const CacheSource& cache, const Segment& segment, int warp, int size)
      : slot_bytes_(uint64_t{cache.slot_vectors} * kChunkBytes), block_vectors_(cache.block_vectors),
        slot_vectors_(cache.slot_vectors) {
    const int byte = piece() * kPieceBytes;
    from_ = opaque(cache.data + byte / kChunkBytes * cache.stride_chunk_bytes + byte % kChunkBytes +
                   segment.kv_head * (uint64_t{cache.head_vectors} * kChunkBytes));
    is_inside_ = opaque(piece() * kElements < size);
    const int row = kWarpKeys * warp + first();
    if constexpr (kIsKey && !Store::kIsFp8) to_ = place_offset_bytes<kHeadSize>(row, place_of_piece<Store>(piece()));
    else to_ = Tile::offset_bytes(row, Store::kIsFp8 ? 0 : piece());
  }

  // Calls visit(i, source) for the lane's pieces: those of the warp's entries i + first(). With kHasWholeBlocks, the
  // warp's entries lie in neighbouring slots of one block, and all lanes pass the slot of the first entry. Otherwise,
  // lane i passes the slot of entry i.
  template <bool kHasWholeBlocks, class Visit>
  __device__ void for_each(uint32_t block, uint32_t slot, uint32_t valid, Visit visit) const {
    const uint32_t vector = block * block_vectors_ + slot * slot_vectors_, own = is_inside_ ? valid >> first() : 0;
    if constexpr (kHasWholeBlocks) {
      const char* from = from_ + uint64_t{valid == 0 ? 0 : vector} * kChunkBytes + first() * slot_bytes_;
#pragma unroll
      for (int i = 0; i < kWarpKeys; i += kEntriesAtOnce, from += kEntriesAtOnce * slot_bytes_) {
        visit(i, Source{from, (own >> i & 1) != 0});
      }
    } else {
#pragma unroll
      for (int i = 0; i < kWarpKeys; i += kEntriesAtOnce) {
        const uint32_t at = shuffle(vector, i + first());
        visit(i, Source{from_ + uint64_t{at} * kChunkBytes, (own >> i & 1) != 0});
      }
    }
  }

  // Starts an asynchronous copy of a piece of entry i + first().
  __device__ void copy(uint32_t tile, int i, const Source& source) const {
    // SwizzledTile XORs the number of a chunk with the last three bits of the row. For row first() + i, these bits are
    // those of first() XOR those of i: i is a multiple of kEntriesAtOnce, which is a power of two above first(). to_
    // contains the XOR with first(). The XOR with i % 8 can be applied to the whole address, because tiles are aligned
    // to 1024 bytes.
    const uint32_t to = ((tile + to_) ^ i % 8 * kChunkBytes) + i * Tile::kRowBytes;
    if constexpr (kPieceBytes == 8) copy_async_8(to, source.from, source.is_valid);
    else copy_async(to, source.from, source.is_valid);
  }

  __device__ void load(Codes& codes, int i, const Source& source) const {
    uint32_t(&four)[4] = codes[i / kEntriesAtOnce];
#pragma unroll
    for (auto& word : four) word = 0;
    load_vector_if(source.is_valid, four, source.from);
  }
  // Converts codes, and writes the numbers to a tile.
  __device__ void store(const Codes& codes, char* tile, int warp) const {
#pragma unroll
    for (int i = 0; i < kWarpKeys; i += kEntriesAtOnce) {
      const int row = kWarpKeys * warp + i + first();
      uint2 halves[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t word = codes[i / kEntriesAtOnce][j];
        halves[j] = {halves_from_fp8<Store::kElement>(word), halves_from_fp8<Store::kElement>(word >> 16)};
      }
      if constexpr (kIsKey) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int place = place_of_piece<Store>(4 * piece() + j);
          *reinterpret_cast<uint2*>(tile + place_offset_bytes<kHeadSize>(row, place)) = halves[j];
        }
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint2 low = halves[2 * j], high = halves[2 * j + 1];
          *reinterpret_cast<uint4*>(tile + Tile::offset_bytes(row, 2 * piece() + j)) = {low.x, low.y, high.x, high.y};
        }
      }
    }
  }

 private:
  __device__ static int first() { return kLanes == 32 ? 0 : threadIdx.x % 32 / kLanes; }
  __device__ static int piece() { return threadIdx.x % 32 % kLanes; }

  const char* from_;  // the lane's piece of the head in slot 0 of block 0
  uint64_t slot_bytes_;
  uint32_t block_vectors_, slot_vectors_;
  uint32_t to_;    // the offset of the lane's first piece in a tile
  int is_inside_;  // whether the piece is not past the end of the head
};

// Each warp loads kWarpKeys keys of a step and their values.
template <class Store, int kHeadSize>
class WarpgroupLoader {
  using Shared = WarpgroupShared<kHeadSize>;
  using Tile = SwizzledTile<kHeadSize>;
  using KeyCopier = EntryCopier<Store, kHeadSize, true>;
  using ValueCopier = EntryCopier<Store, kHeadSize, false>;

 public:
  __device__ WarpgroupLoader(const AttentionProblem& p, Shared& shared)
      : p_(p), shared_(shared), warp_(threadIdx.x / 32 % 4), lane_(threadIdx.x % 32) {}

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
      if (segment.keys().size() > 0) {
        // If the block size is a multiple of kWarpKeys, a warp's keys lie in neighbouring slots of one block.
        if (p_.blocks.block_size.value % kWarpKeys == 0) load_tile<true>(segment);
        else load_tile<false>(segment);
      }
      sync_warp();  // brings the lanes together again
      shared_.is_segment_free[slot].arrive();
    }
  }

 private:
  template <bool kHasWholeBlocks>
  __device__ void load_tile(const Segment& segment) {
    const KeyCopier keys(p_.key, segment, warp_, p_.key_size);
    const ValueCopier values(p_.value, segment, warp_, p_.value_size);
    const Range range = segment.keys();
    look_up<kHasWholeBlocks>(segment, range.begin);
#pragma unroll 1
    for (int key = range.begin; key < range.end; key += kStep) {
      const uint32_t block = block_of_id(), slot = slot_;
      const uint32_t valid = valid_keys<kHasWholeBlocks>(segment, key, block);
      look_up<kHasWholeBlocks>(segment, key + kStep);
      load_step<kHasWholeBlocks>(keys, values, {block, slot, valid, key == range.begin});
      ++step_;
    }
    if constexpr (!Store::kIsFp8) {
      wait_for_copies<0>();
      finish_step(step_ - 1);
    }
  }

  // The warp's entries of a step.
  struct Entries {
    uint32_t block, slot, valid;
    bool is_first_step;
  };

  template <bool kHasWholeBlocks>
  __device__ void load_step(const KeyCopier& keys, const ValueCopier& values, const Entries& e) {
    const uint32_t stage = step_ % kWarpgroupStages;
    const auto for_each = [&](const auto& copier, auto visit) {
      copier.template for_each<kHasWholeBlocks>(e.block, e.slot, e.valid, visit);
    };
    if constexpr (Store::kIsFp8) {
      typename KeyCopier::Codes key_codes;
      typename ValueCopier::Codes value_codes;
      for_each(keys, [&](int i, const auto& source) { keys.load(key_codes, i, source); });
      for_each(values, [&](int i, const auto& source) { values.load(value_codes, i, source); });
      wait_for_stage(stage, e.valid);
      keys.store(key_codes, shared_.stages[stage][0], warp_);
      values.store(value_codes, shared_.stages[stage][1], warp_);
      finish_step(step_);
    } else {
      wait_for_stage(stage, e.valid);
      const uint32_t tiles = shared_address(shared_.stages[stage]);
      for_each(keys, [&](int i, const auto& source) { keys.copy(tiles, i, source); });
      for_each(values, [&](int i, const auto& source) { values.copy(tiles + Tile::kBytes, i, source); });
      commit_copies();
      if (e.is_first_step) return;
      wait_for_copies<1>();
      finish_step(step_ - 1);
    }
  }

  __device__ void wait_for_stage(uint32_t stage, uint32_t valid) {
    shared_.is_free[stage].wait(step_ / kWarpgroupStages % 2 ^ 1);
    if (lane_ == 0) shared_.valid[stage][warp_] = static_cast<uint16_t>(valid);
  }
  __device__ void finish_step(uint32_t step) {
    publish_to_matrix_instructions();
    shared_.is_loaded[step % kWarpgroupStages].arrive();
  }

  // Issues the load of the block id of key lane_ % kWarpKeys, or of the warp's first key if all have the same block.
  template <bool kHasWholeBlocks>
  __device__ void look_up(const Segment& segment, int step_key) {
    const int key = step_key + kWarpKeys * warp_ + (kHasWholeBlocks ? 0 : lane_ % kWarpKeys);
    const Range readable = segment.visible.any;
    id_ = {};
    const bool is_needed = kHasWholeBlocks ? key + kWarpKeys > readable.begin : key >= readable.begin;
    if (!is_needed || key >= readable.end) return;
    const int block = small_quotient(key, p_.blocks.block_size);
    slot_ = key - block * static_cast<int>(p_.blocks.block_size.value);
    id_ = PrefetchedIndex(p_.sequences.block_table, segment.sequence_index * p_.sequences.block_table.stride + block);
  }
  static constexpr uint32_t kNowhere = ~uint32_t{0};
  // Returns the block id that was looked up, or kNowhere if the cache has no such block.
  __device__ uint32_t block_of_id() const {
    const int64_t id = id_.value();
    return id >= 0 && id < p_.blocks.num_blocks ? static_cast<uint32_t>(id) : kNowhere;
  }
  // Bit i says whether the warp's key i can be read.
  template <bool kHasWholeBlocks>
  __device__ uint32_t valid_keys(const Segment& segment, int step_key, uint32_t block) const {
    const int key = step_key + kWarpKeys * warp_ + lane_ % kWarpKeys;
    const Range readable = segment.visible.any;
    const bool is_valid = block != kNowhere && (!kHasWholeBlocks || (key >= readable.begin && key < readable.end));
    return ballot(is_valid) & ((1u << kWarpKeys) - 1);
  }

  const AttentionProblem& p_;
  Shared& shared_;
  const int warp_, lane_;
  uint32_t step_ = 0;   // counts the steps of all tiles
  PrefetchedIndex id_;  // of the next step
  int slot_ = 0;
};

}  // namespace multikv::gpu
