// Loads keys and values from the cache to the registers of one warp, one step ahead of their use.
#pragma once

#include "cuda/attention/split_shared.cuh"

namespace multikv::gpu {

// All lanes call all functions. kHasVectors: whether both caches have vectors.
//
// An instruction that touches the destination register of a load waits for the load. So nothing touches the registers
// of vectors in flight until the kernel needs the vectors. Loads of vectors have no branches, because around a branch
// the compiler would move registers, and each move would wait. So the loads do not test whether a key can be read. If
// it cannot, they read a slot of block 0, and clear_values() later replaces the value by 0.
template <class Store, int kHeadSize, bool kHasVectors>
class StepLoader {
  using Shape = SplitShape<Store, kHeadSize>;
  static constexpr int kKeyTiles = Shape::kKeyTiles, kChunkGroups = Shape::kChunkGroups;
  static constexpr int kLaneWords = Shape::kLaneBytes / 4, kValueTiles = kStep / 16;

 public:
  using Chunk = uint32_t[4];
  Chunk keys[kKeyTiles][2][kChunkGroups];
  uint32_t values[kValueTiles][4][kLaneWords];

  // `staging` has Shape::kStagingBytes; it is not used if both caches have vectors.
  __device__ StepLoader(const AttentionProblem& p, const Segment& segment, char* staging)
      : p_(p), segment_(segment), staging_(staging), warp_(threadIdx.x / 32), lane_(threadIdx.x % 32) {
#pragma unroll
    for (int i = 0; i < kKeyTiles * 2 * kChunkGroups * 4; ++i) {
      keys[i / (8 * kChunkGroups)][i / (4 * kChunkGroups) % 2][i / 4 % kChunkGroups][i % 4] = 0;
    }
  }

  // Looks up the block ids of the first step of the segment. After that, the caller calls locate() for each step,
  // before it loads the step.
  __device__ void start() { look_up(segment_.keys().begin); }

  // Takes the block ids of the step at `key`, and looks up those of the step after it. Returns which keys can be read.
  __device__ uint64_t locate(int key) {
    uint32_t valid[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const bool is_valid = ids_[half].is_below(p_.blocks.num_blocks);
      valid[half] = ballot(is_valid);
      blocks_[half] = is_valid ? ids_[half].low : 0;
      const int lane_key = key + half * 32 + lane_;
      slots_[half] =
          lane_key - small_quotient(lane_key, p_.blocks.block_size) * static_cast<int>(p_.blocks.block_size.value);
    }
    valid_ = static_cast<uint64_t>(valid[1]) << 32 | valid[0];
    look_up(key + kStep);
    return valid_;
  }

  // Starts the loads of the located keys, which overwrite `keys`.
  __device__ void load_keys() {
    if constexpr (kHasVectors) load_key_vectors();
    else stage_keys();
  }

  // Starts the loads of the located values, which overwrite `values`.
  __device__ void load_values() {
    if constexpr (kHasVectors) load_value_vectors();
    else stage_values();
  }

  // Replaces the values of keys that could not be read by 0. Bit i of `valid` says whether key i could be.
  __device__ void clear_values(uint64_t valid) {
#pragma unroll
    for (int i = 0; i < 4 * kValueTiles; ++i) {
      const bool is_clear = (valid >> value_key(i) & 1) == 0;
#pragma unroll
      for (uint32_t& word : values[i / 4][i % 4]) word = is_clear ? 0 : word;
    }
  }

  // Calls visit(word) for all words of values.
  template <class Visit>
  __device__ void for_each_value(Visit visit) {
#pragma unroll
    for (int i = 0; i < kValueTiles * 4 * kLaneWords; ++i) {
      visit(values[i / (4 * kLaneWords)][i / kLaneWords % 4][i % kLaneWords]);
    }
  }

 private:
  // The key of values[i / 4][i % 4].
  __device__ int value_key(int i) const { return i / 4 * 16 + lane_ % 4 * 2 + i % 2 + i % 4 / 2 * 8; }

  // A prefetched block id, as two 32-bit words. The first use waits for the load.
  struct BlockId {
    uint32_t low, high;
    __device__ bool is_below(int64_t num_blocks) const { return high == 0 && low < num_blocks; }
  };

  // Issues the loads of the block ids of a step: lane i looks up keys i and i + 32.
  __device__ void look_up(int step_key) {
    const Indices& table = p_.sequences.block_table;
    const Range readable = segment_.visible.any;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = step_key + half * 32 + lane_;
      ids_[half] = {~uint32_t{0}, ~uint32_t{0}};
      if (key < readable.begin || key >= readable.end) continue;
      const int64_t at = segment_.sequence_index * table.stride + small_quotient(key, p_.blocks.block_size);
      const auto* words = static_cast<const uint32_t*>(table.data) + (at << table.is_int64);
      ids_[half] = {words[0], table.is_int64 ? words[1] : 0};
    }
  }

  // Return the offset of the head in a slot from the start of the cache. vectors_to() counts vectors of 16 bytes, for
  // caches with vectors, and takes the slot of the lane's first (half == 0) or second key. bytes_to() counts bytes, and
  // takes any slot.
  __device__ uint32_t vectors_to(const CacheSource& cache, int half) const {
    return blocks_[half] * cache.block_vectors + segment_.kv_head * cache.head_vectors +
           slots_[half] * cache.slot_vectors;
  }
  __device__ int64_t bytes_to(const CacheSource& cache, int64_t block, int slot) const {
    const int group = small_quotient(slot, cache.slots_per_group);
    const int rest = slot - group * static_cast<int>(cache.slots_per_group.value);
    return block * cache.stride_block_bytes + segment_.kv_head * cache.stride_head_bytes +
           group * cache.stride_slot_group_bytes + rest * cache.stride_slot_bytes;
  }

  __device__ bool is_valid(int step_key) const { return (valid_ >> step_key & 1) != 0; }

  __device__ void load_key_vectors() {
    const uint32_t vectors[2] = {vectors_to(p_.key, 0), vectors_to(p_.key, 1)};
    const int64_t stride_chunk = p_.key.stride_chunk_bytes;
    const int chunk = lane_ % 4, num_chunks = p_.key_size * Store::kBytes / kChunkBytes;
    const char* first = p_.key.data + chunk * stride_chunk;
#pragma unroll
    for (int i = 0; i < 2 * kKeyTiles; ++i) {
      const int key = warp_ * Shape::kWarpKeys + 8 * i + lane_ / 4;
      const uint32_t vector = shuffle(key / 32 == 0 ? vectors[0] : vectors[1], key % 32);
      const char* from = first + static_cast<uint64_t>(vector) * kChunkBytes;
#pragma unroll
      for (int group = 0; group < kChunkGroups; ++group) {
        load_vector_if(chunk + 4 * group < num_chunks, keys[i / 2][i % 2][group], from + group * 4 * stride_chunk);
      }
    }
  }
  __device__ void load_value_vectors() {
    const uint32_t vectors[2] = {vectors_to(p_.value, 0), vectors_to(p_.value, 1)};
    // Columns past the end are never used. The last columns are loaded in their place.
    const int byte = warp_ * Shape::kSliceBytes + lane_ / 4 * Shape::kLaneBytes;
    const char* first = p_.value.data + min(byte, p_.value_size * Store::kBytes - Shape::kLaneBytes);
#pragma unroll
    for (int i = 0; i < 4 * kValueTiles; ++i) {
      const uint32_t vector = shuffle(i < 2 * kValueTiles ? vectors[0] : vectors[1], value_key(i) % 32);
      load_vector(values[i / 4][i % 4], first + static_cast<uint64_t>(vector) * kChunkBytes);
    }
  }

  // Load `keys` and `values` from caches without vectors.
  __device__ void stage_keys() {
    stage(p_.key, p_.key_size, warp_ * Shape::kWarpKeys, Shape::kWarpKeys, 0, kHeadSize);
#pragma unroll
    for (int i = 0; i < 2 * kKeyTiles * kChunkGroups; ++i) {
      const int row = i / kChunkGroups * 8 + lane_ / 4, chunk = i % kChunkGroups * 4 + lane_ % 4;
      const auto* from = reinterpret_cast<const uint32_t*>(staging_ + row * Shape::kRowBytes + chunk * kChunkBytes);
#pragma unroll
      for (int j = 0; j < 4; ++j) keys[i / (2 * kChunkGroups)][i / kChunkGroups % 2][i % kChunkGroups][j] = from[j];
    }
  }
  __device__ void stage_values() {
    stage(p_.value, p_.value_size, 0, kStep, warp_ * Shape::kSliceColumns, Shape::kSliceColumns);
#pragma unroll
    for (int i = 0; i < 4 * kValueTiles; ++i) {
      const auto* from = reinterpret_cast<const uint32_t*>(staging_ + value_key(i) * Shape::kSliceBytes +
                                                           lane_ / 4 * Shape::kLaneBytes);
#pragma unroll
      for (int j = 0; j < kLaneWords; ++j) values[i / 4][i % 4][j] = from[j];
    }
  }

  // Copies elements first .. first + count - 1 of some keys or values of the step to the warp's staging memory, element
  // by element: any strides, any alignment.
  __device__ void stage(const CacheSource& cache, int size, int first_key, int num_keys, int first, int count) {
    using Word = std::conditional_t<Store::kBytes == 1, uint8_t, uint16_t>;
    constexpr int kUnroll = 8;
    sync_warp();
    const int lanes_per_key = max(32 / num_keys, 1);
#pragma unroll 1
    for (int i = lane_ / lanes_per_key; i < num_keys; i += 32 / lanes_per_key) {
      const int key = first_key + i, half = key / 32;
      const uint32_t block = shuffle(half == 0 ? blocks_[0] : blocks_[1], key % 32);
      const int slot = shuffle(half == 0 ? slots_[0] : slots_[1], key % 32);
      const bool is_readable = is_valid(key);
      const char* entry = cache.data + bytes_to(cache, block, slot);
      auto* to = reinterpret_cast<Word*>(staging_) + i * count;
#pragma unroll 1
      for (int at = lane_ % lanes_per_key * kUnroll; at < count; at += lanes_per_key * kUnroll) {
        Word words[kUnroll];
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) {
          const int element = first + at + j, group = small_quotient(element, cache.elements_per_group);
          const int rest = element - group * static_cast<int>(cache.elements_per_group.value);
          const char* from = entry + group * cache.stride_element_group_bytes + rest * cache.stride_element_bytes;
          words[j] = is_readable && element < size ? *reinterpret_cast<const Word*>(from) : Word{0};
        }
#pragma unroll
        for (int j = 0; j < kUnroll; ++j) to[at + j] = words[j];
      }
    }
    sync_warp();
  }
  const AttentionProblem& p_;
  const Segment& segment_;
  char* staging_;
  const int warp_, lane_;
  BlockId ids_[2];  // of the step after the located one
  // The located step: this lane's two keys, and which keys can be read.
  uint32_t blocks_[2];
  int slots_[2];
  uint64_t valid_;
};

}  // namespace multikv::gpu
