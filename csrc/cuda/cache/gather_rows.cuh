// Reading sequences out of a cache: which entry each output row takes, and the kernel that all gathers share.
#pragma once

#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/indices.cuh"
#include "cuda/core/vec.cuh"
#include "cuda/launch.h"

namespace multikv::gpu {

__device__ inline int population(uint32_t mask) { return static_cast<int>(__popc(mask)); }

// For each of the 32 lanes the last sequence that begins at or before its token, `first` + lane, and where it begins.
// Sequence -1: none does. All lanes of the group must call.
struct SequenceStart {
  int64_t sequence, begin;
};
__device__ inline SequenceStart sequence_of(const Sequences& q, int64_t first, int num_tokens, int lane) {
  // 32 probes a step, down to a window of 32 bounds that begins at the last one that is at most `first`.
  int64_t low = 0, high = q.num_bounds;
  while (high - low > 31) {
    const int64_t step = (high - low + 31) / 32;
    const int64_t probe = low + (lane + 1) * step - 1;
    low += population(ballot(probe < high && PendingIndex(q.cu_seq_lens, probe).value() <= first)) * step;
    high = low + step - 1 < high ? low + step - 1 : high;
  }
  const int64_t window = low > 0 ? low - 1 : 0;
  const bool is_bound = window + lane < q.num_bounds;
  const int64_t bound = is_bound ? PendingIndex(q.cu_seq_lens, window + lane).value() : 0;

  const int64_t token = first + lane;
  int count = population(ballot(is_bound && bound <= first));
  if (count != population(ballot(is_bound && bound < first + num_tokens))) {  // tokens of several sequences
    count = 0;
#pragma unroll
    for (const int step : {16, 8, 4, 2, 1, 1}) {
      const int next = count + step - 1;
      if (shuffle(bound, next) <= token && window + next < q.num_bounds) count += step;
    }
  }
  int64_t sequence = window + count - 1;
  int64_t begin = shuffle(bound, count > 0 ? count - 1 : 0);
  if (count == 32) {  // past the window, if sequences are that short
    int64_t end = q.num_bounds;
    int64_t next = window + 32;
    while (next < end) {
      const int64_t middle = (next + end) / 2;
      if (PendingIndex(q.cu_seq_lens, middle).value() <= token) next = middle + 1;
      else end = middle;
    }
    sequence = next - 1;
    begin = PendingIndex(q.cu_seq_lens, sequence).value();
  }
  return {sequence, begin};
}

// The block and the offset in it of the entry for each lane's token; block -1: there is none. All lanes of the group
// must call.
struct Found {
  int64_t block, offset;
};
__device__ inline Found look_up(const Sequences& q, int64_t first, int num_tokens, int lane) {
  constexpr Found kNone = {-1, 0};
  const int64_t token = first + lane;
  // One sequence most likely begins with the first row, at its first position: its block is loaded with the bounds.
  const bool is_one = q.num_sequences == 1;
  int64_t likely_block = -1, likely_id = -1;
  SequenceStart at;
  if (is_one) {
    const auto block = static_cast<int64_t>(quotient_of(token, q.block_size));
    const bool is_in_table = block < q.blocks_per_sequence;
    const PendingIndex id(q.block_table, is_in_table ? block : 0);
    const PendingIndex bounds[] = {{q.cu_seq_lens, 0}, {q.cu_seq_lens, q.num_bounds > 1}};
    at.begin = bounds[0].value();
    const int64_t end = q.num_bounds > 1 ? bounds[1].value() : q.num_tokens;
    at.sequence = token < at.begin ? -1 : token < end ? 0 : 1;
    if (is_in_table) likely_block = block, likely_id = id.value();
  } else {
    at = sequence_of(q, first, num_tokens, lane);
  }
  const auto [sequence, begin] = at;
  if (lane >= num_tokens || sequence < 0 || sequence >= q.num_sequences || begin < 0 || begin > token) return kNone;
  const int64_t start = q.seq_starts.data == nullptr ? 0 : PendingIndex(q.seq_starts, sequence).value();
  if (start < 0) return kNone;
  const uint64_t position = static_cast<uint64_t>(start) + static_cast<uint64_t>(token - begin);
  const uint64_t block = quotient_of(position, q.block_size);
  if (block >= static_cast<uint64_t>(q.blocks_per_sequence)) return kNone;
  const int64_t in_table = sequence * q.block_table.stride + static_cast<int64_t>(block);
  const int64_t id =
      static_cast<int64_t>(block) == likely_block ? likely_id : PendingIndex(q.block_table, in_table).value();
  if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(q.num_blocks)) return kNone;
  return {id, static_cast<int64_t>(position - block * q.block_size.value)};
}

constexpr int kMaxTile = 128;             // tokens of a thread block
constexpr int64_t kTileBytes = 9 * 1024;  // and what they should come to, so that the look-up is worth it

// An op says what it moves by an Entry: sequences(); vectors(), of one row, and kVectorBytes, of one vector where it is
// wider; kBlocks, how many thread blocks a multiprocessor should hold; place(found), where an entry of the cache lies
// (false: nowhere); read(place, vector), and write(token, vector, value). What is left of a row, if it is little:
// read_rest(place) and write_rest(token, place, rest), by one thread. A thread block takes `tile` tokens. Threads: x
// and blockIdx.y over vectors, z over tokens.
template <class Entry>
__global__ void MULTIKV_LAUNCH_BOUNDS(kMaxThreads, Entry::kBlocks)
    gather_kernel(const MULTIKV_GRID_CONSTANT Entry entry, int tile, int64_t first_chunk) {
  constexpr int kUnroll = 2;
  using Place = typename Entry::Place;
  __shared__ Place places[kMaxTile];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * tile;
  const int64_t rest = entry.sequences().num_tokens - first;
  const int num_tokens = static_cast<int>(rest < tile ? rest : tile);
  const int thread = threadIdx.z * blockDim.x + threadIdx.x;
  // Groups of 32 lanes look up 32 tokens each: there are enough of them.
  const int begin = thread & ~31;
  Place own{};
  if (begin < num_tokens) {
    const int count = num_tokens - begin < 32 ? num_tokens - begin : 32;
    const Found found = look_up(entry.sequences(), first + begin, count, thread % 32);
    if (found.block >= 0) own = entry.place(found);
    places[thread] = own;
  }
  __syncthreads();

  const bool has_rest = own && first_chunk + blockIdx.y == 0;
  typename Entry::Rest rest_of_own{};
  if (has_rest) rest_of_own = entry.read_rest(own);
  const int64_t vector = (first_chunk + blockIdx.y) * blockDim.x + threadIdx.x;
  const int step = static_cast<int>(blockDim.z), end = vector < entry.vectors() ? num_tokens : 0;
  for (int next = threadIdx.z; next < end; next += kUnroll * step) {
    typename Entry::Value values[kUnroll];
    bool is_found[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int token = next + i * step;
      const Place place = token < num_tokens ? places[token] : Place{};
      is_found[i] = static_cast<bool>(place);
      if (is_found[i]) values[i] = entry.read(place, vector);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (is_found[i]) entry.write(first + next + i * step, vector, values[i]);
    }
  }
  if (has_rest) entry.write_rest(first + thread, own, rest_of_own);
}

template <class Entry>
void launch_gather(const Entry& entry, const Context& context) {
  const int64_t num_tokens = entry.sequences().num_tokens;
  const int64_t vectors = std::max<int64_t>(entry.vectors(), 1);
  // Tiles small enough to occupy every multiprocessor a few times over.
  const int64_t spread = (num_tokens + 8 * context.num_multiprocessors - 1) / (8 * context.num_multiprocessors);
  const int64_t enough = std::clamp<int64_t>(kTileBytes / (vectors * Entry::kVectorBytes), 1, kMaxTile);
  int64_t tile = std::min(spread, enough);
  BlockShape shape = block_shape(vectors, 1, tile);
  // No threads that have one token less than others.
  const int64_t step = std::min<int64_t>(shape.threads.z, kMaxTile);
  tile =
      spread < enough ? tile / step * step : std::min<int64_t>((tile + step - 1) / step * step, kMaxTile / step * step);
  shape.row_blocks = (vectors + shape.threads.x - 1) / shape.threads.x;
  // Whole groups of lanes look up, enough of them for all tokens.
  const auto lookers = static_cast<unsigned>((tile + 31) / 32 * 32);
  shape.threads.x = std::max(shape.threads.x, (lookers + shape.threads.z - 1) / shape.threads.z);
  for_each_grid((num_tokens + tile - 1) / tile, shape, 1, [&](dim3 grid, int64_t first_chunk) {
    gather_kernel<<<grid, shape.threads, 0, context.stream>>>(entry, static_cast<int>(tile), first_chunk);
  });
}

}  // namespace multikv::gpu
