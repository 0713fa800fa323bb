// Copies keys and values from the cache to shared memory, kStep at a time and several steps ahead of their use.
#pragma once

#include "cuda/attention/schedule.cuh"
#include "cuda/cache/slots.cuh"
#include "vendor/matrix.cuh"

namespace multikv::gpu {

// How keys and values are stored, and the type in which they are multiplied.
//
// fp8 codes are always multiplied as float16 numbers, which hold them exactly. A query of bfloat16 is then multiplied
// by a power of two, so that its largest element is near the top of float16's range.
template <Element kElement_>
struct Storage {
  static constexpr Element kElement = kElement_;
  static constexpr bool kIsFp8 = is_fp8(kElement);
  static constexpr int kBytes = kIsFp8 ? 1 : 2;
  static constexpr Float kProduct = kElement == Element::kBFloat16 ? Float::kBFloat16 : Float::kFloat16;
  // Weights are held as 2^(score - m + kShift). The shift moves the largest weights to the top of float16's range, so
  // that fewer small weights become 0.
  static constexpr float kShift = kProduct == Float::kFloat16 ? 15.0f : 0.0f;
};

inline constexpr int kChunkBytes = 16;

// A tile in shared memory: rows of kRowBytes, which is a power of two, in chunks of 16 bytes. Chunks are permuted so
// that two kinds of loads of 128 bytes have no bank conflicts: loads of the same chunk of eight neighbouring rows, and
// loads of four neighbouring chunks of the rows 2 * i and 2 * i + 1.
template <int kRowBytes>
struct SharedTile {
  static constexpr int kChunks = kRowBytes / kChunkBytes;
  static_assert(kChunks >= 4);
  __device__ static constexpr int permuted(int row, int chunk) {
    return chunk ^ (kChunks == 4 ? row >> 1 & 3 : (row & 1) << 2 | (row >> 1 & 3));
  }
  __device__ static constexpr int offset_bytes(int row, int chunk) {
    return row * kRowBytes + permuted(row, chunk) * kChunkBytes;
  }
};

inline constexpr int kFlagSteps = 8;  // a power of two, greater than the number of stages

// The part of shared memory that the loader keeps beside the tiles.
struct LoaderState {
  // The offsets of keys and values in their caches, [step % 2][is value][key]. vectors[] counts vectors of 16 bytes;
  // kNowhere marks a key that cannot be read. offsets[] counts bytes, and -1 marks such a key. offsets[] is not written
  // for caches with vectors.
  static constexpr uint32_t kNowhere = ~uint32_t{0};
  uint32_t vectors[2][2][kStep];
  int64_t offsets[2][2][kStep];
  uint32_t valid[kFlagSteps][kStep / 32];  // which keys of a step can be read
};

// Copies one tile of keys or of values with asynchronous copies of 16 bytes.
template <int kRowBytes, int kThreads>
__device__ inline void copy_tile_vectors(uint32_t tile, const CacheSource& cache, const uint32_t* vectors,
                                         int num_chunks) {
  using Tile = SharedTile<kRowBytes>;
  constexpr int kRowsAtOnce = kThreads / Tile::kChunks;
  static_assert(kRowsAtOnce % 8 == 0);  // so that all rows of a thread have the same permutation
  const int thread = threadIdx.x, chunk = thread % Tile::kChunks, first_row = thread / Tile::kChunks;
  if (chunk >= num_chunks) return;
  const char* from = cache.data + chunk * cache.stride_chunk_bytes;
  const uint32_t to = tile + Tile::offset_bytes(first_row, chunk);
#pragma unroll
  for (int i = 0; i < kStep / kRowsAtOnce; ++i) {
    const uint32_t vector = vectors[first_row + i * kRowsAtOnce];
    const bool is_valid = vector != LoaderState::kNowhere;
    const uint64_t offset = static_cast<uint64_t>(is_valid ? vector : 0) * kChunkBytes;
    copy_async(to + i * kRowsAtOnce * kRowBytes, from + offset, is_valid);
  }
}

// Copies one tile element by element: any strides, any alignment.
template <int kRowBytes, int kThreads, class Word>
__device__ inline void copy_tile_elements(char* tile, const CacheSource& cache, const int64_t* offsets, int size) {
  using Tile = SharedTile<kRowBytes>;
  constexpr int kChunkWords = kChunkBytes / static_cast<int>(sizeof(Word));
  const int row = threadIdx.x % kStep;
  const int64_t offset = offsets[row];
#pragma unroll 4
  for (int i = threadIdx.x / kStep; i < size; i += kThreads / kStep) {
    const auto group = static_cast<int64_t>(quotient_of(i, cache.elements_per_group));
    const int64_t at = offset + group * cache.stride_element_group_bytes +
                       (i - group * cache.elements_per_group.signed_value()) * cache.stride_element_bytes;
    const Word word = offset < 0 ? Word{0} : *reinterpret_cast<const Word*>(cache.data + at);
    reinterpret_cast<Word*>(tile + Tile::offset_bytes(row, i / kChunkWords))[i % kChunkWords] = word;
  }
}

// Loads the keys and values of a segment. A stage is the memory of one step: the tile of keys, then the tile of values.
// A call of turn() starts the copies of one step, writes the offsets of the step after it, and loads the block ids of
// the step after that one. kThreads must be 2 * kStep or more: each of the first 2 * kStep threads computes the offset
// of one key or one value.
template <class Store, int kHeadSize, int kThreads>
class TileLoader {
 public:
  static constexpr int kRowBytes = kHeadSize * Store::kBytes, kTileBytes = kStep * kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;

  __device__ TileLoader(const AttentionProblem& p, const Segment& segment, char* stages, int num_stages,
                        LoaderState& state)
      : p_(p), segment_(segment), stages_(stages), num_stages_(num_stages), state_(state) {}

  // Starts the copies of the first num_stages - 1 steps.
  __device__ void start() {
    const Range keys = segment_.keys();
    key_ = keys.begin;
    end_ = keys.end;
    clear_padding();
    look_up(key_);
    write_offsets();
    for (int i = 1; i < num_stages_; ++i) {
      __syncthreads();
      turn();
    }
  }

  // Waits until the step that the caller uses next has been copied. After that, the caller synchronises and calls
  // turn().
  __device__ void wait() const {
    if (num_stages_ == 2) return wait_for_copies<0>();
    return wait_for_copies<1>();
  }
  __device__ void turn() {
    if (key_ < end_) copy();
    commit_copies();
    stage_ = stage_ + 1 == num_stages_ ? 0 : stage_ + 1;
    key_ += kStep;
    write_offsets();
  }

 private:
  // Elements past the head size are multiplied as zeros, and never loaded.
  __device__ void clear_padding() {
    if (p_.key_size == kHeadSize && p_.value_size == kHeadSize) return;
    auto* words = reinterpret_cast<uint4*>(stages_);
    for (int i = threadIdx.x; i < num_stages_ * kStageBytes / 16; i += kThreads) words[i] = uint4{};
  }

  // Issues the load of the block id of this thread's key.
  __device__ void look_up(int step_key) {
    const int key = step_key + static_cast<int>(threadIdx.x) % kStep;
    const Range readable = segment_.visible.any;
    id_ = {};
    if (threadIdx.x >= 2 * kStep || key < readable.begin || key >= readable.end) return;
    const int block = small_quotient(key, p_.blocks.block_size);
    slot_ = key - block * static_cast<int>(p_.blocks.block_size.value);
    id_ = PrefetchedIndex(p_.sequences.block_table, segment_.sequence_index * p_.sequences.block_table.stride + block);
  }

  // Writes the offsets of the step at key_, and loads the block ids of the next step.
  __device__ void write_offsets() {
    const int thread = threadIdx.x, step = key_ / kStep;
    if (thread < 2 * kStep) {
      const int64_t id = id_.value();
      const bool is_value = thread >= kStep, is_valid = id >= 0 && id < p_.blocks.num_blocks;
      const CacheSource& cache = is_value ? p_.value : p_.key;
      state_.vectors[step % 2][is_value][thread % kStep] = is_valid ? static_cast<uint32_t>(id) * cache.block_vectors +
                                                                          segment_.kv_head * cache.head_vectors +
                                                                          slot_ * cache.slot_vectors
                                                                    : LoaderState::kNowhere;
      if (!cache.has_vectors) write_offset(cache, id, is_valid);
      const uint32_t valid = ballot(is_valid);
      if (!is_value && thread % 32 == 0) state_.valid[step % kFlagSteps][thread / 32] = valid;
    }
    look_up(key_ + kStep);
  }
  __device__ void write_offset(const CacheSource& cache, int64_t id, bool is_valid) {
    const int group = small_quotient(slot_, cache.slots_per_group);
    const int64_t offset = id * cache.stride_block_bytes + segment_.kv_head * cache.stride_head_bytes +
                           group * cache.stride_slot_group_bytes +
                           (slot_ - group * cache.slots_per_group.signed_value()) * cache.stride_slot_bytes;
    state_.offsets[key_ / kStep % 2][threadIdx.x / kStep][threadIdx.x % kStep] = is_valid ? offset : -1;
  }

  __device__ void copy() {
    const auto copy_tile = [this](const CacheSource& cache, int is_value, int size) {
      char* tile = stages_ + stage_ * kStageBytes + is_value * kTileBytes;
      const int64_t* offsets = state_.offsets[key_ / kStep % 2][is_value];
      if (cache.has_vectors) {
        copy_tile_vectors<kRowBytes, kThreads>(shared_address(tile), cache, state_.vectors[key_ / kStep % 2][is_value],
                                               size * Store::kBytes / kChunkBytes);
      } else if constexpr (Store::kBytes == 1) {
        copy_tile_elements<kRowBytes, kThreads, uint8_t>(tile, cache, offsets, size);
      } else {
        copy_tile_elements<kRowBytes, kThreads, uint16_t>(tile, cache, offsets, size);
      }
    };
    copy_tile(p_.key, 0, p_.key_size);
    copy_tile(p_.value, 1, p_.value_size);
  }

  const AttentionProblem& p_;
  const Segment& segment_;
  char* stages_;
  int num_stages_;
  LoaderState& state_;
  int stage_ = 0;  // the stage that is copied to next
  int key_, end_;  // the first key of the step that is copied next; the end of the segment's keys
  // The block id and the offset in the block of this thread's key, in the step after the one at key_.
  PrefetchedIndex id_;
  int slot_ = 0;
};

}  // namespace multikv::gpu
