// What the ops that move blocks make of a mapping from blocks to blocks: every check of it, and its runs. All of it is
// linear in the pairs, so that a call with thousands of them costs microseconds, unless layers share memory, whose
// blocks are compared by address.
#pragma once

#include <vector>

#include "frontend/check/call.h"

namespace multikv {

// One of the tensors, in blocks.
struct SwapSide {
  std::string_view name;  // src or dst,
  int64_t index;          // of a list: which; else -1
  uint64_t address;
  int64_t num_blocks;

  std::string text() const;
};

// The two tensors of one layer.
struct SwapSides {
  SwapSide src, dst;
};

// Reads block_mapping [pairs, 2], which holds at least one, and checks it: every block lies inside the tensors of every
// layer, no two pairs write to one place, none reads what one writes. Neighbours become runs, in the order of dst,
// because memory is written faster in it; valid until the thread's next call.
struct SwapRuns {
  const SwapRun* runs;
  int64_t num_runs;
  int64_t longest;           // in blocks
  int64_t src_end, dst_end;  // past the last block that is read, and written
};
SwapRuns make_swap_runs(const Call& call, const std::vector<SwapSides>& layers, int64_t block_bytes,
                        const Tensor& block_mapping);

}  // namespace multikv
