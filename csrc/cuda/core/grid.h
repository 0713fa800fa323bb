// How work is laid over threads: every op here moves tokens, which are rows, which are vectors.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "params/params.h"

namespace multikv::gpu {

// Calls with<kDtype>() for a dtype that is known at run time.
template <class With>
void with_dtype(Float dtype, With with) {
  switch (dtype) {
    case Float::kFloat32: return with.template operator()<Float::kFloat32>();
    case Float::kFloat16: return with.template operator()<Float::kFloat16>();
    case Float::kBFloat16: return with.template operator()<Float::kBFloat16>();
  }
}

// Threads of a block. Small blocks: while one waits at a barrier or drains, others move bytes.
constexpr int kThreads = 128;
constexpr int kMaxThreads = kThreads * 3 / 2;

// Threads of one block: x over the vectors of a row, y over the rows (heads) of a token, z over tokens. What one block
// cannot hold: threads loop over further vectors, and further rows go to `row_blocks` blocks.
struct BlockShape {
  dim3 threads;
  int64_t row_blocks;
};

// As many tokens as come closest to kThreads: 2 of the 72 vectors that MLA's entries have, not 1 with many lanes idle.
inline BlockShape block_shape(int64_t vectors, int64_t rows, int64_t max_tokens, int64_t max_threads = kMaxThreads) {
  constexpr int64_t kMaxTokens = 64;  // z may be at most 64
  const int64_t passes = (vectors + max_threads - 1) / max_threads;
  const int64_t x = (vectors + passes - 1) / passes;
  const int64_t most_rows = std::max<int64_t>(kThreads / x, 1);
  const int64_t row_blocks = (rows + most_rows - 1) / most_rows;
  const int64_t y = (rows + row_blocks - 1) / row_blocks, xy = x * y;
  const int64_t z =
      std::clamp<int64_t>(std::min((kThreads + xy / 2) / xy, max_threads / xy), 1, std::min(kMaxTokens, max_tokens));
  return {dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z)), row_blocks};
}

// Calls launch(grid, first_row) until all rows are covered: once, unless there are more blocks of them than a grid may
// have. The grid: x over `tiles` of tokens, y over blocks of rows, z as given.
template <class Launch>
void for_each_grid(int64_t tiles, const BlockShape& shape, unsigned z, Launch launch) {
  constexpr int64_t kMaxRowBlocks = 65535;
  for (int64_t begin = 0; begin < shape.row_blocks; begin += kMaxRowBlocks) {
    const auto row_blocks = static_cast<unsigned>(std::min(shape.row_blocks - begin, kMaxRowBlocks));
    launch(dim3(static_cast<unsigned>(tiles), row_blocks, z), begin * shape.threads.y);
  }
}

// The widest power of two, up to `widest`, that divides all of these byte counts and addresses.
inline int common_alignment(int widest, std::initializer_list<int64_t> values) {
  int64_t all = widest;
  for (const int64_t value : values) all |= value;
  return static_cast<int>(all & -all);
}

inline int64_t address(const void* pointer) { return static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer)); }

}  // namespace multikv::gpu
