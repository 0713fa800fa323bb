// swap_blocks and swap_blocks_layers: long runs of blocks go to the copy engines, the other runs to a kernel.
#include <algorithm>
#include <limits>
#include <vector>

#include "cuda/launch.h"
#include "cuda/swap/addresses.h"
#include "cuda/swap/copies.h"
#include "cuda/swap/strategy.h"
#include "cuda/swap/swap_kernel.h"

namespace multikv::gpu {
namespace {

// Copies the runs of at least from_blocks blocks by the copy engines.
cudaError_t copy_runs(const SwapBlocksParams& p, int64_t from_blocks, Copies& copies) {
  if (p.longest_run < from_blocks) return cudaSuccess;
  for (int64_t layer = 0; layer < p.num_layers; ++layer) {
    const auto* src = static_cast<const char*>(p.layers[layer].src);
    auto* dst = static_cast<char*>(p.layers[layer].dst);
    for (int64_t i = 0; i < p.num_runs; ++i) {
      const SwapRun& run = p.runs[i];
      if (run.num_blocks < from_blocks) continue;
      MULTIKV_RETURN_IF_FAILED(copies.add(dst + run.dst_block * p.block_bytes, src + run.src_block * p.block_bytes,
                                          run.num_blocks * p.block_bytes));
    }
  }
  return copies.submit();
}

// Copies the runs of fewer than from_blocks blocks by a kernel.
cudaError_t copy_by_kernel(const SwapBlocksParams& p, int64_t from_blocks, SwapKernel kernel) {
  for (int64_t i = 0; i < p.num_runs; ++i) {
    const SwapRun run = p.runs[i];
    if (run.num_blocks >= from_blocks) continue;
    for (int64_t k = 0; k < run.num_blocks; ++k)
      MULTIKV_RETURN_IF_FAILED(kernel.add(run.src_block + k, run.dst_block + k));
  }
  return kernel.submit();
}

// Copies from one GPU to another, in order with the work on the streams of both.
cudaError_t copy_between_devices(const SwapBlocksParams& p, const Context& context, bool capturing) {
  const int src = p.src_device, dst = p.dst_device;
  const cudaStream_t dst_stream = context.stream_of(dst);
  // Under capture, context.stream alone orders the copy: a captured stream may not wait for a stream outside the
  // capture. A caller who captures both streams must order them with events.
  if (!capturing) MULTIKV_RETURN_IF_FAILED(wait_for(dst_stream, dst, context.stream, src));
  Copies copies(context.stream, src, !capturing);
  MULTIKV_RETURN_IF_FAILED(copy_runs(p, 0, copies));
  return capturing ? cudaSuccess : wait_for(context.stream, src, dst_stream, dst);
}

// Collects the addresses at which the GPU accesses the layers. Returns false if it cannot access some of the host's
// memory.
bool find_gpu_addresses(const SwapBlocksParams& p, std::vector<SwapLayer>& layers) {
  layers.assign(p.layers, p.layers + p.num_layers);
  std::optional<Memory> memory;
  for (SwapLayer& layer : layers) {
    if (p.src_device < 0 && (layer.src = gpu_address_of_host(layer.src, p.src_bytes, memory)) == nullptr) return false;
    if (p.dst_device < 0 && (layer.dst = gpu_address_of_host(layer.dst, p.dst_bytes, memory)) == nullptr) return false;
  }
  return true;
}

// Returns the number of blocks from which a run goes to a copy engine; 0: all runs do.
int64_t copy_engine_from_blocks(const SwapBlocksParams& p, const Crossover& crossover, bool may_batch) {
  // The kernel's block ids have 32 bits. With more blocks, the copy engines copy all runs.
  const int64_t most_blocks = std::max(p.src_bytes, p.dst_bytes) / p.block_bytes;
  if (most_blocks > std::numeric_limits<uint32_t>::max()) return 0;
  const int64_t from_bytes = copy_engine_from(crossover, may_batch);
  return from_bytes > 0 ? (from_bytes - 1) / p.block_bytes + 1 : 0;
}

}  // namespace

template <>
cudaError_t launch(const SwapBlocksParams& p, const Context& context) {
  bool capturing = false;
  MULTIKV_RETURN_IF_FAILED(is_capturing(context.stream, capturing));
  if (p.src_device >= 0 && p.dst_device >= 0 && p.src_device != p.dst_device) {
    return copy_between_devices(p, context, capturing);
  }
  static thread_local std::vector<SwapLayer> gpu_layers;
  const bool are_visible = find_gpu_addresses(p, gpu_layers);
  const Direction direction = direction_of(p.src_device, p.dst_device);
  const bool may_batch = are_visible && !capturing && direction != Direction::kWithinDevice && has_batches();
  const Crossover& crossover = crossovers.of(context.device_index, direction);
  const int64_t from_blocks = are_visible ? copy_engine_from_blocks(p, crossover, may_batch) : 0;

  Copies copies(context.stream, context.device_index, may_batch);
  MULTIKV_RETURN_IF_FAILED(copy_runs(p, from_blocks, copies));
  if (from_blocks == 0) return cudaSuccess;
  const SwapKernelWork work = {
      .layers = gpu_layers.data(),
      .num_layers = p.num_layers,
      .unit_bytes = p.block_bytes,
      .block_bytes = p.block_bytes,
      .most_pairs = p.num_blocks,
      .link_threads = crossover.kernel_threads.load(std::memory_order_relaxed),
  };
  return copy_by_kernel(p, from_blocks, SwapKernel(work, context.stream));
}

}  // namespace multikv::gpu
