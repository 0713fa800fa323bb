// Lays out the work of an op over threads. A token consists of rows (its heads, in most ops), and each row consists of
// vectors.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

namespace multikv::gpu {

template <class Integer>
constexpr Integer ceil_div(Integer value, Integer divisor) {
  return (value + divisor - 1) / divisor;
}

// The number of threads of a thread block. Thread blocks are small, so that other resident blocks move bytes while one
// of them waits at a barrier or drains.
constexpr int kThreads = 128;
constexpr int kMaxThreads = kThreads * 3 / 2;

// The shape of a thread block: threadIdx.x runs over the vectors of a row, y over the rows of a token, z over tokens.
// If a row has more than blockDim.x vectors, threads loop over them (in a gather, the grid covers them instead). The
// rows of a token are divided among `row_blocks` thread blocks, at most blockDim.y rows each.
struct BlockShape {
  dim3 threads;
  int64_t row_blocks;
};

// Chooses a shape of about kThreads threads: as many rows of a token as kThreads holds, then the number of tokens that
// comes closest to kThreads. Entries of 72 vectors (MLA), for example, get thread blocks of 2 tokens, because 144
// threads are closer to 128 than the 72 threads of 1 token.
inline BlockShape block_shape(int64_t vectors, int64_t rows, int64_t max_tokens, int64_t max_threads = kMaxThreads) {
  constexpr int64_t kMaxTokens = 64;  // CUDA's limit of blockDim.z
  const int64_t passes = ceil_div(vectors, max_threads);
  const int64_t x = ceil_div(vectors, passes);
  const int64_t most_rows = std::max<int64_t>(kThreads / x, 1);
  const int64_t row_blocks = ceil_div(rows, most_rows);
  const int64_t y = ceil_div(rows, row_blocks), xy = x * y;
  const int64_t z =
      std::clamp<int64_t>(std::min((kThreads + xy / 2) / xy, max_threads / xy), 1, std::min(kMaxTokens, max_tokens));
  return {dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)), row_blocks};
}

// Calls launch(grid, first_row) until all rows are covered: once, unless there are more row blocks than CUDA's limit of
// gridDim.y. gridDim.x is `chunks`, the number of chunks of tokens; gridDim.y counts row blocks; gridDim.z is `z`.
template <class Launch>
void for_each_grid(int64_t chunks, const BlockShape& shape, unsigned z, Launch launch) {
  constexpr int64_t kMaxRowBlocks = 65535;  // CUDA's limit of gridDim.y
  for (int64_t begin = 0; begin < shape.row_blocks; begin += kMaxRowBlocks) {
    const auto row_blocks = static_cast<unsigned>(std::min(shape.row_blocks - begin, kMaxRowBlocks));
    launch(dim3(static_cast<unsigned>(chunks), row_blocks, z), begin * shape.threads.y);
  }
}

}  // namespace multikv::gpu
