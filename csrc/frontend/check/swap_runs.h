// Reads and checks block_mapping, which maps source to destination blocks, and joins neighbouring blocks to runs.
#pragma once

#include <vector>

#include "frontend/check/swap_pairs.h"
#include "params/swap_params.h"

namespace multikv {

// Runs in the order of dst, because memory is written faster in order. `runs` is valid until the thread's next call.
struct SwapRuns {
  const SwapRun* runs;
  int64_t num_runs;
  int64_t longest;           // in blocks
  int64_t src_end, dst_end;  // the last block that is read, plus 1; the last that is written, plus 1
};

// block_mapping [pairs, 2] must have at least one pair. Fails unless its blocks lie inside the tensors of every layer,
// no block is written twice, and no memory is both read and written.
SwapRuns find_swap_runs(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                        const Tensor& block_mapping);

}  // namespace multikv
