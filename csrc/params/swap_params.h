// What the front end hands to a backend for the ops of family swap. What the pointers point to lives until launch()
// returns.
#pragma once

#include <cstdint>

#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// Neighbouring blocks that stay neighbours, copied as one. Counted in blocks.
struct SwapRun {
  int64_t src_block, dst_block, num_blocks;
  int64_t begin;  // blocks of all runs before this one
};

struct SwapLayer {
  const void* src;
  void* dst;
};

// The same runs in every layer.
struct SwapBlocksParams {
  const SwapLayer* layers;
  const SwapRun* runs;
  int64_t num_layers, num_runs, num_blocks;  // num_blocks: of all runs, in one layer
  int64_t longest_run;                       // in blocks
  int64_t block_bytes;
  int64_t src_bytes, dst_bytes;    // from the start of each tensor to the end of the last block that is copied
  int32_t src_device, dst_device;  // -1: the host

  constexpr int64_t layer_bytes() const { return num_blocks * block_bytes; }
  // An item is a byte: bytes of the runs, layer by layer.
  constexpr Work work() const {
    return {.num_items = num_layers * layer_bytes(), .bytes_read = 1, .bytes_written = 1, .is_read_soon = false};
  }
};
static_assert(LaunchParams<SwapBlocksParams>);

// A copy between addresses of any memory.
struct SwapCopy {
  const void* src;
  void* dst;
  int64_t num_bytes;
  int64_t begin_bytes;  // bytes of all copies before this one
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
