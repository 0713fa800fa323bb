// Gathers sequences from a cache: finds the slot of each output row, and copies the entries. All gathers share the two
// kernels of this file, for few and for many tokens, except that of the packed layout (gather_packed.cuh).
#pragma once

#include <algorithm>
#include <concepts>

#include "core/sequences.h"
#include "cuda/cache/find_sequence.cuh"
#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/pack.cuh"
#include "cuda/launch.h"

namespace multikv::gpu {

__device__ inline SequenceBounds bounds_of(const Sequences& sequences) {
  return {sequences.cu_seq_lens, sequences.num_bounds};
}

// A block id that is loaded speculatively: before it is known that the token belongs to the only sequence.
struct SpeculativeBlock {
  int64_t column = -1, id = -1;  // the column of the block table, and the id there; -1: not loaded
};

// Finds the sequence of a token if there is only one sequence. The sequence most likely begins with output row 0 and
// position 0. Under this assumption the token's block id is loaded speculatively, so that its load overlaps with that
// of the bounds.
__device__ __forceinline__ SequenceStart only_sequence_of(const Sequences& sequences, int64_t token,
                                                          SpeculativeBlock& speculative) {
  const auto column = static_cast<int64_t>(quotient_of(token, sequences.blocks.block_size));
  const bool is_in_table = column < sequences.blocks_per_sequence;
  const PrefetchedIndex id(sequences.block_table, is_in_table ? column : 0);
  // If there is no bound 1, bounds[1] reads bound 0 again and is not used.
  const PrefetchedIndex bounds[] = {{sequences.cu_seq_lens, 0}, {sequences.cu_seq_lens, sequences.num_bounds > 1}};
  const int64_t begin = bounds[0].value();
  const int64_t end = sequences.num_bounds > 1 ? bounds[1].value() : sequences.num_tokens;
  if (is_in_table) speculative = {column, id.value()};
  return {token < begin ? -1 : token < end ? 0 : 1, begin};
}

// Returns the slot of a position of a sequence. Its block is -1 if the block table has no valid block for the position.
__device__ __forceinline__ BlockOffset find_position(const Sequences& sequences, int64_t sequence, uint64_t position,
                                                     const SpeculativeBlock& speculative) {
  constexpr BlockOffset kNone = {-1, 0};
  const uint64_t column = quotient_of(position, sequences.blocks.block_size);
  if (column >= static_cast<uint64_t>(sequences.blocks_per_sequence)) return kNone;
  const int64_t table_index = sequence * sequences.block_table.stride + static_cast<int64_t>(column);
  const int64_t id = static_cast<int64_t>(column) == speculative.column
                         ? speculative.id
                         : PrefetchedIndex(sequences.block_table, table_index).value();
  if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(sequences.blocks.num_blocks)) return kNone;
  return {id, static_cast<int64_t>(position - column * sequences.blocks.block_size.value)};
}

// Finds the slot of each lane's token. Its block is -1 if there is none, or if the lane's index is tokens.count or
// above. All lanes of the warp must call.
__device__ inline BlockOffset look_up(const Sequences& sequences, const WarpTokens& tokens, int lane) {
  constexpr BlockOffset kNone = {-1, 0};
  const int64_t token = tokens.first + tokens.index;
  SpeculativeBlock speculative;
  const auto [sequence, begin] = sequences.num_sequences == 1 ? only_sequence_of(sequences, token, speculative)
                                                              : sequence_of(bounds_of(sequences), tokens, lane);
  if (tokens.index >= tokens.count || sequence < 0 || sequence >= sequences.num_sequences) return kNone;
  if (begin < 0 || begin > token) return kNone;
  const int64_t start = sequences.seq_starts.is_given() ? PrefetchedIndex(sequences.seq_starts, sequence).value() : 0;
  if (start < 0) return kNone;
  const uint64_t position = static_cast<uint64_t>(start) + static_cast<uint64_t>(token - begin);
  return find_position(sequences, sequence, position, speculative);
}

// What a gather moves for each token: an entry of the cache. An entry consists of vectors, and possibly of a rest that
// is not moved as vectors.
template <class Entry>
concept GatherEntry =
    requires(const Entry& entry, BlockOffset at, typename Entry::Pointer from, int64_t i,
             const typename Entry::Place& place, const typename Entry::Value& value, const typename Entry::Rest& rest) {
      // The bytes of a vector: the larger of its sizes in the cache and in the output.
      { Entry::kVectorBytes } -> std::same_as<const int&>;
      // The minimum number of resident thread blocks per multiprocessor, for __launch_bounds__.
      { Entry::kBlocks } -> std::same_as<const int&>;
      { entry.sequences() } -> std::same_as<const Sequences&>;
      // The number of vectors in an entry.
      { entry.vectors() } -> std::same_as<int64_t>;
      // Returns where the entry of a slot lies. A Pointer that converts to false means that there is no entry; its
      // token is skipped.
      { entry.find(at) } -> std::same_as<typename Entry::Pointer>;
      static_cast<bool>(from);
      // Returns the place of vector i: what vector i has in common in all entries. A thread that moves vector i of
      // several tokens computes the place once. If i is vectors() or above, the place is not used.
      { entry.place(i) } -> std::same_as<typename Entry::Place>;
      // Reads the vector at a place.
      { entry.read(from, place) } -> std::same_as<typename Entry::Value>;
      // Writes a vector: write(token, place, value).
      entry.write(i, place, value);
      // Read and write the rest of an entry. One thread moves the whole rest.
      { entry.read_rest(from) } -> std::same_as<typename Entry::Rest>;
      entry.write_rest(i, from, rest);
    };

// A base of GatherEntry types whose place of a vector is the index of the vector.
struct IndexedVectors {
  using Place = int64_t;
  __host__ __device__ static int64_t place(int64_t vector) { return vector; }
};

// What a GatherEntry inherits if it consists of vectors alone.
struct NoRest : IndexedVectors {
  static constexpr int kBlocks = 10;
  using Pointer = const char*;
  struct Rest {};
  template <class From>
  __device__ static Rest read_rest(const From&) {
    return {};
  }
  template <class From>
  __device__ static void write_rest(int64_t, const From&, Rest) {}
};

// Gathers few tokens by the shortest chain of loads: bounds, block table, entry. There is no shared memory and no
// barrier: each warp looks up its own tokens, and each lane moves one vector.
//
//   threadIdx  x: vectors (2^lane_bits neighbouring lanes move vectors of one token), then tokens
//   blockIdx   x: tokens   y: parts of 2^lane_bits vectors
template <class Entry>
__global__ void __launch_bounds__(kThreads) gather_few_kernel(const MULTIKV_GRID_CONSTANT Entry entry, int lane_bits) {
  static_assert(GatherEntry<Entry>);
  const int lane = threadIdx.x % 32;
  const int64_t thread = blockIdx.x * static_cast<int64_t>(kThreads) + threadIdx.x;
  const int64_t token = thread >> lane_bits, first = (thread - lane) >> lane_bits;
  const int64_t remaining = entry.sequences().num_tokens - first;
  if (remaining <= 0) return;
  const int count = static_cast<int>(remaining < (32 >> lane_bits) ? remaining : 32 >> lane_bits);
  const BlockOffset at = look_up(entry.sequences(), WarpTokens{first, count, lane >> lane_bits}, lane);
  if (at.block < 0) return;
  const auto from = entry.find(at);
  if (!from) return;
  const int64_t vector = static_cast<int64_t>(blockIdx.y << lane_bits) + (lane & ((1 << lane_bits) - 1));
  const bool has_rest = vector == 0, has_vector = vector < entry.vectors();
  typename Entry::Rest rest{};
  if (has_rest) rest = entry.read_rest(from);
  if (has_vector) {
    const auto place = entry.place(vector);
    entry.write(token, place, entry.read(from, place));
  }
  if (has_rest) entry.write_rest(token, from, rest);
}

// Launches gather_few_kernel and returns true if the tokens are few: if all warps are resident at once.
template <class Entry>
bool launch_few(const Entry& entry, const Context& context) {
  constexpr int64_t kMaxWarps = 32;  // per multiprocessor
  const int64_t vectors = entry.vectors();
  int lane_bits = 0;
  while ((1 << lane_bits) < vectors && lane_bits < 5) ++lane_bits;
  const int64_t parts = std::max<int64_t>(ceil_div<int64_t>(vectors, 1 << lane_bits), 1);
  const int64_t threads = entry.sequences().num_tokens << lane_bits;
  if (ceil_div<int64_t>(threads, 32) > kMaxWarps * context.num_multiprocessors / parts) return false;
  const dim3 grid(static_cast<unsigned>(ceil_div<int64_t>(threads, kThreads)), static_cast<unsigned>(parts));
  gather_few_kernel<<<grid, kThreads, 0, context.stream>>>(entry, lane_bits);
  return true;
}

constexpr int kMaxChunk = 128;             // the most tokens of a thread block
constexpr int64_t kChunkBytes = 9 * 1024;  // a chunk of so many bytes amortises its look-ups

// A thread block gathers one part of the entries of `chunk` tokens.
//
//   threadIdx  x: vectors            z: tokens
//   blockIdx   x: chunks of tokens   y: parts of blockDim.x vectors, from part first_part on
template <class Entry>
__global__ void MULTIKV_LAUNCH_BOUNDS(kMaxThreads, Entry::kBlocks)
    gather_kernel(const MULTIKV_GRID_CONSTANT Entry entry, int chunk, int64_t first_part) {
  static_assert(GatherEntry<Entry>);
  constexpr int kUnroll = 2;
  using Pointer = typename Entry::Pointer;
  __shared__ Pointer entries[kMaxChunk];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * chunk;
  const int64_t remaining = entry.sequences().num_tokens - first;
  const int num_tokens = static_cast<int>(remaining < chunk ? remaining : chunk);
  const int thread = threadIdx.z * blockDim.x + threadIdx.x;
  // Each warp looks up 32 tokens, one by each thread: own_entry is the entry of the thread's token. launch_gather()
  // provides enough warps.
  const int begin = thread & ~31;
  Pointer own_entry{};
  if (begin < num_tokens) {
    const int count = num_tokens - begin < 32 ? num_tokens - begin : 32;
    const BlockOffset at = look_up(entry.sequences(), WarpTokens{first + begin, count, thread % 32}, thread % 32);
    if (at.block >= 0) own_entry = entry.find(at);
    entries[thread] = own_entry;
  }
  const int64_t vector = (first_part + blockIdx.y) * blockDim.x + threadIdx.x;
  const typename Entry::Place place = entry.place(vector);
  __syncthreads();

  const bool has_rest = own_entry && first_part + blockIdx.y == 0;
  typename Entry::Rest own_rest{};
  if (has_rest) own_rest = entry.read_rest(own_entry);
  const int step = static_cast<int>(blockDim.z), end = vector < entry.vectors() ? num_tokens : 0;
  for (int next = threadIdx.z; next < end; next += kUnroll * step) {
    typename Entry::Value values[kUnroll];
    bool is_found[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int token = next + i * step;
      const Pointer from = token < num_tokens ? entries[token] : Pointer{};
      is_found[i] = static_cast<bool>(from);
      if (is_found[i]) values[i] = entry.read(from, place);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (is_found[i]) entry.write(first + next + i * step, place, values[i]);
    }
  }
  if (has_rest) entry.write_rest(first + thread, own_entry, own_rest);
}

template <class Entry>
cudaError_t launch_gather(const Entry& entry, const Context& context) {
  if (launch_few(entry, context)) return cudaGetLastError();
  const int64_t num_tokens = entry.sequences().num_tokens;
  const int64_t vectors = std::max<int64_t>(entry.vectors(), 1);
  // Chunks of `spread` tokens give each multiprocessor about 8 thread blocks for each part of the entries. Chunks of
  // `enough` tokens amortise the look-ups, which the thread blocks of each part repeat. The chunk is the smaller of the
  // two.
  const int64_t part_bytes = block_shape(vectors, 1, 1).threads.x * int64_t{Entry::kVectorBytes};
  const int64_t spread = ceil_div<int64_t>(num_tokens, 8 * context.num_multiprocessors);
  const int64_t enough = std::clamp<int64_t>(kChunkBytes / part_bytes, 1, kMaxChunk);
  int64_t chunk = std::min(spread, enough);
  BlockShape shape = block_shape(vectors, 1, chunk);
  // Rounds the chunk to a multiple of blockDim.z, so that all threads have the same number of tokens: down from
  // `spread`, which keeps at least as many thread blocks, or up from `enough`, which still amortises the look-ups.
  const int64_t step = std::min<int64_t>(shape.threads.z, kMaxChunk);
  chunk =
      spread < enough ? chunk / step * step : std::min<int64_t>(ceil_div(chunk, step) * step, kMaxChunk / step * step);
  shape.row_blocks = ceil_div<int64_t>(vectors, shape.threads.x);  // gridDim.y counts parts of an entry
  // Slots are looked up by whole warps, one token by each thread. The thread block gets enough threads for all its
  // tokens.
  const auto lookup_threads = static_cast<unsigned>(ceil_div<int64_t>(chunk, 32) * 32);
  shape.threads.x = std::max(shape.threads.x, ceil_div(lookup_threads, shape.threads.z));
  for_each_grid(ceil_div(num_tokens, chunk), shape, 1, [&](dim3 grid, int64_t first_part) {
    gather_kernel<<<grid, shape.threads, 0, context.stream>>>(entry, static_cast<int>(chunk), first_part);
  });
  return cudaGetLastError();
}

}  // namespace multikv::gpu
