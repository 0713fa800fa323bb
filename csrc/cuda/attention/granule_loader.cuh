// Copies keys and values to shared memory for the cluster kernel: each warp copies those of its step of a granule.
#pragma once

#include "cuda/attention/cluster_shared.cuh"

namespace multikv::gpu {

// The copies of one warp. All lanes call all functions. Both caches must have vectors.
template <class Store, int kHeadSize>
class GranuleLoader {
  using Shape = ClusterShape<Store, kHeadSize>;
  using Tile = SharedTile<Shape::kRowBytes>;
  static constexpr uint32_t kNowhere = StepOffsets::kNowhere;

 public:
  // `keys` and `values` have room for the warp's step.
  __device__ GranuleLoader(const AttentionProblem& p, const Segment& segment, StepOffsets& offsets, char* keys,
                           char* values)
      : p_(p), segment_(segment), offsets_(offsets), keys_(shared_address(keys)), values_(shared_address(values)),
        warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {}

  // Issues the loads of the block ids of the warp's step of a granule: lane i looks up keys i and i + 32. Keys from
  // `end` on have none.
  __device__ void look_up(int64_t sequence, int granule, int end) {
    const Indices& table = p_.sequences.block_table;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = granule * kGranule + warp_ * kStep + half * 32 + lane_;
      ids_[half] = {~uint32_t{0}, ~uint32_t{0}};
      if (key >= end) continue;
      const int64_t at = sequence * table.stride + small_quotient(key, p_.blocks.block_size);
      const auto* words = static_cast<const uint32_t*>(table.data) + (at << table.is_int64);
      ids_[half] = {words[0], table.is_int64 ? words[1] : 0};
    }
    looked_up_ = granule;
  }

  // Starts the copies of the keys of the warp's step of a granule, if there is such a granule. Then the block ids of
  // the granule after it are looked up. Bit i of the result says whether key i of the step can be read.
  __device__ uint64_t copy_keys(int granule) {
    valid_ = 0;
    if (granule < segment_.granules.end) {
      const int end = segment_.visible.any.end;
      if (looked_up_ != granule) look_up(segment_.sequence_index, granule, end);
      sync_warp();  // all lanes have finished with the former offsets
      locate(granule * kGranule + warp_ * kStep);
      sync_warp();
      if (granule + 1 < segment_.granules.end) look_up(segment_.sequence_index, granule + 1, end);
      copy(keys_, p_.key, p_.key_size, offsets_.keys);
    }
    commit_copies();
    return valid_;
  }
  // Starts the copies of the values of the granule of the last call of copy_keys().
  __device__ void copy_values(int granule) const {
    if (granule < segment_.granules.end) copy(values_, p_.value, p_.value_size, offsets_.values);
    commit_copies();
  }

 private:
  // A prefetched block id, as two 32-bit words. The first use waits for the load.
  struct BlockId {
    uint32_t low, high;
    __device__ bool is_below(int64_t num_blocks) const { return high == 0 && low < num_blocks; }
  };

  // Writes the offsets of the step at `key`.
  __device__ void locate(int key) {
    const Range readable = segment_.visible.any;
    uint32_t valid[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const BlockId id = ids_[half];
      const int at = half * 32 + lane_, step_key = key + at;
      const bool is_valid = id.is_below(p_.blocks.num_blocks) && step_key >= readable.begin && step_key < readable.end;
      valid[half] = ballot(is_valid);
      const int slot =
          step_key - small_quotient(step_key, p_.blocks.block_size) * static_cast<int>(p_.blocks.block_size.value);
      const auto offset_in = [&](const CacheSource& cache) {
        return id.low * cache.block_vectors + segment_.kv_head * cache.head_vectors + slot * cache.slot_vectors;
      };
      offsets_.keys[at] = is_valid ? offset_in(p_.key) : kNowhere;
      offsets_.values[at] = is_valid ? offset_in(p_.value) : kNowhere;
    }
    valid_ = static_cast<uint64_t>(valid[1]) << 32 | valid[0];
  }

  __device__ void copy(uint32_t tile, const CacheSource& cache, int size, const uint32_t (&offsets)[kStep]) const {
    if (~valid_ == 0 && size == kHeadSize) copy_vectors<true>(tile, cache, size, offsets);
    else copy_vectors<false>(tile, cache, size, offsets);
  }

  // Lane i copies chunk i % kChunks of four neighbouring keys at a time.
  template <bool kIsFull>
  __device__ void copy_vectors(uint32_t tile, const CacheSource& cache, int size,
                               const uint32_t (&offsets)[kStep]) const {
    constexpr int kLaneKeys = 4, kAtOnce = 32 / Shape::kChunks * kLaneKeys;
    const int chunk = lane_ % Shape::kChunks, first = lane_ / Shape::kChunks * kLaneKeys;
    const bool is_chunk = chunk < size * Store::kBytes / kChunkBytes;
    const char* from = cache.data + chunk * cache.stride_chunk_bytes;
    keep(from);
#pragma unroll
    for (int key = 0; key < kStep; key += kAtOnce) {
      const uint4 four = *reinterpret_cast<const uint4*>(&offsets[key + first]);
      const uint32_t vectors[kLaneKeys] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < kLaneKeys; ++i) {
        const uint32_t to = tile + Tile::offset_bytes(key + first + i, chunk);
        if constexpr (kIsFull) {
          copy_async(to, from + static_cast<uint64_t>(vectors[i]) * kChunkBytes);
        } else {
          const bool is_valid = is_chunk && vectors[i] != kNowhere;
          copy_async(to, from + static_cast<uint64_t>(is_valid ? vectors[i] : 0) * kChunkBytes, is_valid);
        }
      }
    }
  }

  const AttentionProblem& p_;
  const Segment& segment_;
  StepOffsets& offsets_;
  const uint32_t keys_, values_;
  const int warp_, lane_;
  int looked_up_ = -1;  // the granule of ids_
  BlockId ids_[2];
  uint64_t valid_ = 0;  // bit i: whether key i of the located step can be read
};

}  // namespace multikv::gpu
