// What the front end hands to a backend for the ops of family swap. The arrays of layers, runs and copies stay valid
// until launch() returns.
#pragma once

#include <cstdint>

#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// Consecutive blocks of src that are copied to consecutive blocks of dst. All members count blocks.
struct SwapRun {
  int64_t src_block, dst_block, num_blocks;
  int64_t begin;  // number of blocks in all runs before this one
};

struct SwapLayer {
  const void* src;
  void* dst;
};

// The same runs are copied in every layer.
struct SwapBlocksParams {
  const SwapLayer* layers;
  const SwapRun* runs;
  int64_t num_layers, num_runs, num_blocks;  // num_blocks: of all runs, in one layer
  int64_t longest_run;                       // in blocks
  int64_t block_bytes;
  int64_t src_bytes, dst_bytes;    // from the start of each tensor to the end of the last block that is copied
  int32_t src_device, dst_device;  // -1: the host

  constexpr int64_t layer_bytes() const { return num_blocks * block_bytes; }
  // An item is a byte: first the bytes of all runs of layer 0, then those of layer 1, and so on.
  constexpr Work work() const {
    return {.num_items = num_layers * layer_bytes(), .bytes_read = 1, .bytes_written = 1, .is_read_soon = false};
  }
};
static_assert(LaunchParams<SwapBlocksParams>);

// A copy from one address to another. Each may be in the memory of the host or of a GPU.
struct SwapCopy {
  const void* src;
  void* dst;
  int64_t num_bytes;
  int64_t begin_bytes;  // size of all copies before this one
};

struct SwapBlocksBatchParams {
  const SwapCopy* copies;
  int64_t num_copies, num_bytes;
  bool is_src_access_order_any;

  // An item is a byte of all copies together.
  constexpr Work work() const {
    return {.num_items = num_bytes, .bytes_read = 1, .bytes_written = 1, .is_read_soon = false};
  }
};
static_assert(LaunchParams<SwapBlocksBatchParams>);

}  // namespace multikv
