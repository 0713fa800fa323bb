// Copies keys and values from the cache to shared memory for one warp, several copies ahead of their use.
#pragma once

#include "cuda/attention/cache_tiles.cuh"

namespace multikv::gpu {

// The keys and values of a step come in four parts: keys 0 to 31, keys 32 to 63, then the values of the same keys.
inline constexpr int kPartKeys = kStep / 2, kPartsPerStep = 4;

// A ring of parts in the shared memory of one warp, which consumes the parts in their order. All lanes call all
// functions.
template <class Store, int kHeadSize>
class StepRing {
 public:
  static constexpr int kRowBytes = kHeadSize * Store::kBytes, kPartBytes = kPartKeys * kRowBytes;
  static constexpr int kParts = kRowBytes >= 256 ? 3 : kRowBytes == 128 ? 6 : 8, kBytes = kParts * kPartBytes;
  static constexpr int kFlagSteps = 4;  // a power of two, greater than the number of steps that kParts parts touch
  using Flags = uint32_t[2];            // which keys of a step can be read

  __device__ StepRing(const AttentionProblem& p, char* parts, Flags* flags)
      : p_(p), parts_(parts), flags_(flags), lane_(threadIdx.x % 32) {}

  // Starts the copies of the first kParts - 1 parts of a segment. The last part stays free until next() is called.
  __device__ void start(const Segment& segment) {
    const Range keys = segment.keys();
    key_ = keys.begin;
    end_ = keys.end;
    readable_ = segment.visible.any;
    kv_head_ = segment.kv_head;
    table_row_ = segment.sequence_index * p_.sequences.block_table.stride;
    part_ = copied_part_ = 0;
    look_up(key_);
#pragma unroll 1
    for (int i = 0; i < kParts - 1; ++i) copy(i % kPartsPerStep);
  }
  __device__ char* last_part() const { return parts_ + (kParts - 1) * kPartBytes; }

  // Waits for part kPart of the current step, starts another copy, and returns the address of the part. The part that
  // the former call returned must not be used any more.
  template <int kPart>
  __device__ uint32_t next() {
    wait_for_copies<kParts - 2>();
    sync_warp();
    copy((kPart + kParts - 1) % kPartsPerStep);
    const uint32_t part = shared_address(parts_ + part_ * kPartBytes);
    part_ = after(part_);
    return part;
  }

  // Which keys of the step can be read; valid from next<0>() to next<3>() of the step.
  __device__ const Flags& flags(int key) const { return flags_[key / kStep % kFlagSteps]; }

 private:
  __device__ static int after(int part) { return part + 1 == kParts ? 0 : part + 1; }

  // Issues the loads of the block ids of a step.
  __device__ void look_up(int step_key) {
    const Indices& table = p_.sequences.block_table;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int key = step_key + half * kPartKeys + lane_;
      ids_[half] = {};
      if (key < readable_.begin || key >= readable_.end) continue;
      ids_[half] = PrefetchedIndex(table, table_row_ + small_quotient(key, p_.blocks.block_size));
    }
  }

  // Takes the block ids of the step that is copied next, and looks up those of the step after it.
  __device__ void enter_step() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t id = ids_[half].value();
      const bool is_valid = id >= 0 && id < p_.blocks.num_blocks;
      blocks_[half] = is_valid ? id : -1;
      const uint32_t valid = ballot(is_valid);
      if (lane_ == 0) flags_[key_ / kStep % kFlagSteps][half] = valid;
    }
    look_up(key_ + kStep);
  }

  // Starts the copies of a part, if there is one.
  __device__ void copy(int part) {
    if (key_ < end_) {
      if (part == 0) enter_step();
      copy_rows(part < 2 ? p_.key : p_.value, part < 2 ? p_.key_size : p_.value_size, part % 2);
      if (part + 1 == kPartsPerStep) key_ += kStep;
    }
    commit_copies();
    copied_part_ = after(copied_part_);
  }

  __device__ void copy_rows(const CacheSource& cache, int size, int half) {
    const int key = key_ + half * kPartKeys + lane_;
    const int slot = key - small_quotient(key, p_.blocks.block_size) * static_cast<int>(p_.blocks.block_size.value);
    const int group = small_quotient(slot, cache.slots_per_group);
    const int rest = slot - group * static_cast<int>(cache.slots_per_group.value);
    const int64_t block = half == 0 ? blocks_[0] : blocks_[1];
    char* part = parts_ + copied_part_ * kPartBytes;
    if (cache.has_vectors) {
      const auto vectors = [](int64_t bytes) { return static_cast<uint32_t>(bytes / kChunkBytes); };
      const uint32_t offset = static_cast<uint32_t>(block) * vectors(cache.stride_block_bytes) +
                              kv_head_ * vectors(cache.stride_head_bytes) +
                              group * vectors(cache.stride_slot_group_bytes) + rest * vectors(cache.stride_slot_bytes);
      copy_vectors(shared_address(part), cache, offset, ballot(block >= 0), size);
    } else {
      const int64_t offset = block * cache.stride_block_bytes + kv_head_ * cache.stride_head_bytes +
                             group * cache.stride_slot_group_bytes + rest * cache.stride_slot_bytes;
      copy_elements(part, cache, block < 0 ? -1 : offset, size);
    }
  }

  // Copies vectors of 16 bytes. `offset` is where the entry of this lane's key lies in the cache, in vectors; `valid`
  // says which keys have one.
  __device__ void copy_vectors(uint32_t part, const CacheSource& cache, uint32_t offset, uint32_t valid, int size) {
    using Tile = SharedTile<kRowBytes>;
    constexpr int kRowsAtOnce = 32 / Tile::kChunks, kCopies = kPartKeys / kRowsAtOnce, kPeriod = 8 / kRowsAtOnce;
    const int first_row = lane_ / Tile::kChunks, chunk = lane_ % Tile::kChunks;
    const int element = chunk * (kChunkBytes / Store::kBytes);
    const int group = small_quotient(element, cache.elements_per_group);
    const int rest = element - group * static_cast<int>(cache.elements_per_group.value);
    const char* from = cache.data + group * cache.stride_element_group_bytes + rest * cache.stride_element_bytes;
    const bool is_inside = element < size;
    uint32_t to[kPeriod];  // eight rows later, chunks have the same permutation
#pragma unroll
    for (int i = 0; i < kPeriod; ++i) to[i] = part + Tile::offset_bytes(first_row + i * kRowsAtOnce, chunk);
    if (valid == 0xffffffffu) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        const uint32_t row_offset = shuffle(offset, first_row + i * kRowsAtOnce);
        copy_async_if(is_inside, to[i % kPeriod] + i / kPeriod * 8 * kRowBytes,
                      from + static_cast<uint64_t>(row_offset) * kChunkBytes);
      }
      return;
    }
#pragma unroll 1
    for (int first = 0; first < kCopies; first += kPeriod) {
#pragma unroll
      for (int i = 0; i < kPeriod; ++i) {
        const int row = first_row + (first + i) * kRowsAtOnce;
        const uint32_t row_offset = shuffle(offset, row);
        const bool is_valid = (valid >> row & 1) != 0;
        const char* at = is_valid ? from + static_cast<uint64_t>(row_offset) * kChunkBytes : cache.data;
        if (is_inside) copy_async(to[i] + first * kRowsAtOnce * kRowBytes, at, is_valid);
      }
    }
  }

  // Copies element by element: any strides, any alignment. Each lane copies the entry of its key.
  __device__ void copy_elements(char* part, const CacheSource& cache, int64_t offset, int size) {
    using Word = std::conditional_t<Store::kBytes == 1, uint8_t, uint16_t>;
    constexpr int kChunkWords = kChunkBytes / Store::kBytes;  // one chunk at a time
#pragma unroll 1
    for (int first = 0; first < size; first += kChunkWords) {
      Word words[kChunkWords];
#pragma unroll
      for (int i = 0; i < kChunkWords; ++i) {
        const int element = min(first + i, size - 1);
        const int group = small_quotient(element, cache.elements_per_group);
        const int rest = element - group * static_cast<int>(cache.elements_per_group.value);
        const int64_t at = offset + group * cache.stride_element_group_bytes + rest * cache.stride_element_bytes;
        words[i] = offset < 0 || first + i >= size ? Word{0} : *reinterpret_cast<const Word*>(cache.data + at);
      }
      uint4 chunk = {};
      auto* packed = &chunk.x;
#pragma unroll
      for (int i = 0; i < kChunkWords; ++i) {
        packed[i * Store::kBytes / 4] |= static_cast<uint32_t>(words[i]) << (i * Store::kBytes % 4 * 8);
      }
      *reinterpret_cast<uint4*>(part + SharedTile<kRowBytes>::offset_bytes(lane_, first / kChunkWords)) = chunk;
    }
  }

  const AttentionProblem& p_;
  char* parts_;
  Flags* flags_;
  const int lane_;
  int part_, copied_part_;  // the next ones to be used and to be copied
  int key_, end_;           // the first key of the step that is copied next; the end of the segment's keys
  Range readable_;
  int kv_head_;
  int64_t table_row_;
  PrefetchedIndex ids_[2];  // of the step after key_
  int64_t blocks_[2];       // of the step at key_; -1: not to be read
};

}  // namespace multikv::gpu
