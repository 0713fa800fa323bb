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
  // Weights are held as 2^(score - m + kShift). The shift uses float16's range: without it, small weights would be 0.
  static constexpr float kShift = kProduct == Float::kFloat16 ? 15.0f : 0.0f;
};

inline constexpr int kChunkBytes = 16;

// A tile in shared memory: rows of kRowBytes, which is a power of two, in chunks of 16 bytes. Chunks are permuted so
// that the same chunk of eight neighbouring rows lies in eight different groups of memory banks.
template <int kRowBytes>
struct SharedTile {
  static constexpr int kChunks = kRowBytes / kChunkBytes;
  static_assert(kChunks >= 4);
  __device__ static constexpr int permuted(int row, int chunk) {
    return kChunks == 4 ? chunk ^ (row >> 1 & 3) : chunk ^ (row & 7);
  }
  __device__ static constexpr int offset_bytes(int row, int chunk) {
    return row * kRowBytes + permuted(row, chunk) * kChunkBytes;
  }
};

inline constexpr int kMaxStages = 6, kFlagSteps = 8;

// The keys of one step.
struct StepPlan {
  bool is_past_end;  // there is no such step
  int key, kv_head;
  Range readable;  // the keys that may be read
  int64_t sequence;
};

// Enumerates the steps of a thread block. It lies in shared memory, to save registers: one thread moves it on.
template <class Shape>
class Steps {
 public:
  Steps() = default;
  __device__ void start(const AttentionProblem& p, const WorkStart& start) {
    segments_.start(p, start);
    enter(p);
  }
  __device__ StepPlan take(const AttentionProblem& p) {
    const StepPlan plan = plan_;
    if (plan.is_past_end) return plan;
    plan_.key += kStep;
    if (plan_.key >= end_) {
      segments_.next(p);
      enter(p);
    }
    return plan;
  }

 private:
  __device__ void enter(const AttentionProblem& p) {
    for (; !segments_.is_done(); segments_.next(p)) {
      const Segment segment = segments_.get(p);
      const Range keys = segment.keys();
      if (keys.size() == 0) continue;
      end_ = keys.end;
      plan_ = {false, keys.begin, segment.kv_head, segment.visible.any, segment.sequence_index};
      return;
    }
    plan_.is_past_end = true;
  }

  Segments<Shape> segments_;
  StepPlan plan_;
  int end_;
};

// The part of shared memory that the loader keeps beside the tiles.
template <class Shape>
struct LoaderState {
  Steps<Shape> steps;
  StepPlan plans[4];             // of the steps whose block ids are looked up next
  int64_t offsets[2][2][kStep];  // of the next two steps: where each key and each value lies in its cache; -1: nowhere
  uint32_t valid[kFlagSteps][kStep / 32];  // which keys of a step can be read
};

// Copies one tile of keys or of values with asynchronous copies of 16 bytes.
template <int kRowBytes, int kThreads>
__device__ inline void copy_tile_vectors(uint32_t tile, const CacheSource& cache, const int64_t* offsets, int row_bytes,
                                         int element_bytes) {
  using Tile = SharedTile<kRowBytes>;
  constexpr int kRowsAtOnce = kThreads / Tile::kChunks;
  const int thread = threadIdx.x, chunk = thread % Tile::kChunks, first_row = thread / Tile::kChunks;
  if (chunk * kChunkBytes >= row_bytes) return;
  const int element = chunk * kChunkBytes / element_bytes;
  const auto group = static_cast<int64_t>(quotient_of(element, cache.elements_per_group));
  const char* from = cache.data + group * cache.stride_element_group_bytes +
                     (element - group * cache.elements_per_group.signed_value()) * cache.stride_element_bytes;
#pragma unroll
  for (int i = 0; i < kStep / kRowsAtOnce; ++i) {
    const int row = first_row + i * kRowsAtOnce;
    const int64_t offset = offsets[row];
    copy_async(tile + Tile::offset_bytes(row, chunk), from + max(offset, int64_t{0}), offset >= 0);
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

// Loads tiles. A stage is the memory of one step: the tile of keys, then the tile of values. A call of turn() starts
// the copies of one step, writes the offsets of the step after it, and loads the block ids of the step after that one.
// kThreads must be 2 * kStep or more: each of the first 2 * kStep threads computes the offset of one key or one
// value.
template <class Store, int kHeadSize, class Shape, int kThreads>
class TileLoader {
 public:
  static constexpr int kRowBytes = kHeadSize * Store::kBytes, kTileBytes = kStep * kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes;

  __device__ TileLoader(const AttentionProblem& p, char* stages, int num_stages, LoaderState<Shape>& state)
      : p_(p), stages_(stages), num_stages_(num_stages), state_(state) {}

  // Starts the copies of the first num_stages - 1 steps.
  __device__ void start(const WorkStart& start) {
    if (threadIdx.x == 0) {
      state_.steps.start(p_, start);
      for (int i = 0; i < 2; ++i) state_.plans[i] = state_.steps.take(p_);
    }
    clear_padding();
    __syncthreads();
    look_up(0);
    write_offsets();
    for (int i = 1; i < num_stages_; ++i) {
      __syncthreads();
      turn();
    }
  }

  // Waits for the copies of the next step to be used. Then the caller synchronises, and calls turn().
  __device__ void wait() const {
    switch (num_stages_) {
      case 2: return wait_for_copies<0>();
      case 3: return wait_for_copies<1>();
      case 4: return wait_for_copies<2>();
      case 5: return wait_for_copies<3>();
      case 6: return wait_for_copies<4>();
    }
  }
  __device__ void turn() {
    if (will_copy_) copy();
    commit_copies();
    stage_ = stage_ + 1 == num_stages_ ? 0 : stage_ + 1;
    ++step_;
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
  __device__ void look_up(int step) {
    const StepPlan& plan = state_.plans[step % 4];
    will_copy_next_ = !plan.is_past_end;
    id_ = {};
    if (!will_copy_next_) return;
    const int thread = threadIdx.x, key = plan.key + thread % kStep;
    kv_head_ = plan.kv_head;
    if (thread < 2 * kStep && key >= plan.readable.begin && key < plan.readable.end) {
      const auto block = static_cast<int64_t>(quotient_of(key, p_.blocks.block_size));
      slot_offset_ = key - static_cast<int>(block * p_.blocks.block_size.signed_value());
      const Indices& table = p_.sequences.block_table;
      id_ = PrefetchedIndex(table, plan.sequence * table.stride + block);
    }
  }

  // Writes the offsets of the step after the current one, and looks up those of the next.
  __device__ void write_offsets() {
    const int thread = threadIdx.x;
    if (thread < 2 * kStep) {
      const int64_t id = id_.value();
      const bool is_value = thread >= kStep, is_valid = id >= 0 && id < p_.blocks.num_blocks;
      const CacheSource& cache = is_value ? p_.value : p_.key;
      const auto group = static_cast<int64_t>(quotient_of(slot_offset_, cache.slots_per_group));
      const int64_t offset = id * cache.stride_block_bytes + kv_head_ * cache.stride_head_bytes +
                             group * cache.stride_slot_group_bytes +
                             (slot_offset_ - group * cache.slots_per_group.signed_value()) * cache.stride_slot_bytes;
      state_.offsets[step_ % 2][is_value][thread % kStep] = is_valid ? offset : -1;
      const uint32_t valid = ballot(is_valid);
      if (!is_value && thread % 32 == 0) state_.valid[step_ % kFlagSteps][thread / 32] = valid;
    }
    will_copy_ = will_copy_next_;
    look_up(step_ + 1);
    if (thread == 0) state_.plans[(step_ + 2) % 4] = state_.steps.take(p_);
  }

  __device__ void copy() {
    const auto copy_tile = [this](const CacheSource& cache, int is_value, int size) {
      char* tile = stages_ + stage_ * kStageBytes + is_value * kTileBytes;
      const int64_t* offsets = state_.offsets[step_ % 2][is_value];
      if (cache.has_vectors) {
        copy_tile_vectors<kRowBytes, kThreads>(shared_address(tile), cache, offsets, size * Store::kBytes,
                                               Store::kBytes);
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
  char* stages_;
  int num_stages_;
  LoaderState<Shape>& state_;
  int stage_ = 0, step_ = 0;  // of the next copies
  bool will_copy_ = false, will_copy_next_ = false;
  PrefetchedIndex id_;
  int slot_offset_ = 0, kv_head_ = 0;
};

}  // namespace multikv::gpu
