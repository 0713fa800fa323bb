// Which blocks a kernel copies and which the copy engines, and both. docs/swap.md says what each costs.
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/swap/copies.h"
#include "cuda/swap/swap_kernel.cuh"

namespace multikv::gpu {
namespace {

enum class Strategy : int { kAuto, kCopyEngine, kKernel };
std::atomic<Strategy> strategy{Strategy::kAuto};

enum Direction : int { kToHost, kFromHost, kWithinDevice, kNumDirections };

// For runs of at least so many bytes a copy engine pays: what it gains on the device is more than what its submission
// costs the host. In batches that is little, one by one it is more.
struct Crossover {
  std::atomic<int64_t> in_batches, one_by_one;
  std::atomic<int> kernel_threads;  // those that keep the link busy; 0: as many as there is work for
};

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();
constexpr int kMaxDevices = 64;

// As measured on an H200, until multikv.calibrate_swaps() measures this device.
struct Crossovers {
  Crossover of[kMaxDevices][kNumDirections];
  Crossovers() {
    for (auto& device : of) {
      set(device[kToHost], 448 << 10, 4 << 20, 1024);
      set(device[kFromHost], 320 << 10, 3 << 20, 2048);
      set(device[kWithinDevice], kNever, kNever, 0);  // whatever the size
    }
  }
  static void set(Crossover& crossover, int64_t in_batches, int64_t one_by_one, int kernel_threads) {
    crossover.in_batches.store(in_batches, std::memory_order_relaxed);
    crossover.one_by_one.store(one_by_one, std::memory_order_relaxed);
    crossover.kernel_threads.store(kernel_threads, std::memory_order_relaxed);
  }
};
Crossovers crossovers;

Crossover& crossover_of(int32_t device, Direction direction) {
  return crossovers.of[std::clamp(device, 0, kMaxDevices - 1)][direction];
}

// From how many bytes on a copy engine copies a run that a kernel could copy.
int64_t copy_engine_from(const Crossover& crossover, bool may_batch) {
  switch (strategy.load(std::memory_order_relaxed)) {
    case Strategy::kCopyEngine: return 0;
    case Strategy::kKernel: return kNever;
    case Strategy::kAuto: break;
  }
  return (may_batch ? crossover.in_batches : crossover.one_by_one).load(std::memory_order_relaxed);
}

cudaError_t is_capturing(cudaStream_t stream, bool& result) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaError_t error = cudaStreamIsCapturing(stream, &status);
  result = status != cudaStreamCaptureStatusNone;
  return error;
}

// The runs of at least so many blocks.
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

// One GPU to another, in order with what the streams of both have to do.
cudaError_t copy_between_devices(const SwapBlocksParams& p, const Context& context, bool capturing) {
  const int src = p.src_device, dst = p.dst_device;
  const cudaStream_t dst_stream = context.stream_of(dst);
  // In a graph there is one stream. Whoever captures on two has joined them.
  if (!capturing) MULTIKV_RETURN_IF_FAILED(wait_for(dst_stream, dst, context.stream, src));
  Copies copies(context.stream, src, !capturing);
  MULTIKV_RETURN_IF_FAILED(copy_runs(p, 0, copies));
  return capturing ? cudaSuccess : wait_for(context.stream, src, dst_stream, dst);
}

// The layers as the GPU sees them. False: some of the host's memory it does not.
bool find_views(const SwapBlocksParams& p, std::vector<SwapLayer>& views) {
  views.assign(p.layers, p.layers + p.num_layers);
  std::optional<Memory> memory;
  for (SwapLayer& layer : views) {
    if (p.src_device < 0 && (layer.src = view_of_host(layer.src, p.src_bytes, memory)) == nullptr) return false;
    if (p.dst_device < 0 && (layer.dst = view_of_host(layer.dst, p.dst_bytes, memory)) == nullptr) return false;
  }
  return true;
}

}  // namespace

cudaError_t launch(const SwapBlocksParams& p, const Context& context) {
  bool capturing = false;
  MULTIKV_RETURN_IF_FAILED(is_capturing(context.stream, capturing));
  if (p.src_device >= 0 && p.dst_device >= 0 && p.src_device != p.dst_device) {
    return copy_between_devices(p, context, capturing);
  }
  const Direction direction = p.dst_device < 0 ? kToHost : p.src_device < 0 ? kFromHost : kWithinDevice;
  static thread_local std::vector<SwapLayer> views;
  const bool are_visible = find_views(p, views);
  const bool may_batch = are_visible && !capturing && direction != kWithinDevice && has_batches();
  const Crossover& crossover = crossover_of(context.device_index, direction);
  const int64_t from_bytes = are_visible ? copy_engine_from(crossover, may_batch) : 0;
  // A kernel's block ids have 32 bits.
  const bool is_numbered = std::max(p.src_bytes, p.dst_bytes) / p.block_bytes <= std::numeric_limits<uint32_t>::max();
  const int64_t from_blocks = is_numbered && from_bytes > 0 ? (from_bytes - 1) / p.block_bytes + 1 : 0;

  Copies copies(context.stream, context.device_index, may_batch);
  MULTIKV_RETURN_IF_FAILED(copy_runs(p, from_blocks, copies));
  if (from_blocks == 0) return cudaSuccess;
  SwapKernel kernel(views.data(), p.num_layers, p.block_bytes, p.block_bytes, p.num_blocks,
                    crossover.kernel_threads.load(std::memory_order_relaxed), context.stream);
  for (int64_t i = 0; i < p.num_runs; ++i) {
    const SwapRun run = p.runs[i];
    if (run.num_blocks >= from_blocks) continue;
    for (int64_t k = 0; k < run.num_blocks; ++k)
      MULTIKV_RETURN_IF_FAILED(kernel.add(run.src_block + k, run.dst_block + k));
  }
  return kernel.submit();
}

namespace {

// -- addresses
// ---------------------------------------------------------------------------------------------------------

// What is known of the addresses of one call: few ranges of memory, each asked for once.
class Ranges {
 public:
  // The range around an address; nullptr if the driver knows none.
  const Memory* find(const void* address) {
    const auto at = reinterpret_cast<uintptr_t>(address);
    if (last_ < ranges_.size() && ranges_[last_].begin <= at && at < ranges_[last_].end) return &ranges_[last_];
    for (last_ = 0; last_ < ranges_.size(); ++last_) {
      if (ranges_[last_].begin <= at && at < ranges_[last_].end) return &ranges_[last_];
    }
    const std::optional<Memory> memory = memory_at(address);
    if (!memory) return nullptr;
    ranges_.push_back(*memory);
    return &ranges_.back();
  }

 private:
  std::vector<Memory> ranges_;
  size_t last_ = 0;
};

// One side of one copy. Memory that no driver knows may be the host's own, or not be at all.
struct Place {
  uintptr_t view = 0;  // 0: a GPU cannot read it
  int32_t device = -1;
};

bool is_readable(const void* address) {
  char byte = 0;
  const iovec to{&byte, 1}, from{const_cast<void*>(address), 1};
  return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1 || errno != EFAULT;
}

Place place_of(Ranges& ranges, std::string_view name, int64_t i, const void* address, int64_t num_bytes) {
  const auto* begin = static_cast<const char*>(address);
  const auto fail = [&](const char* got) {
    throw std::runtime_error("swap_blocks_batch: " + std::string(name) + ": expected addresses of memory, got " + got +
                             " (copy " + std::to_string(i) + " of those left when neighbours are merged)");
  };
  const Memory* memory = ranges.find(begin);
  if (memory == nullptr) {
    if (!is_readable(begin) || !is_readable(begin + num_bytes - 1)) fail("one that no memory is at");
    return {};
  }
  const Place place{reinterpret_cast<uintptr_t>(begin) + memory->view, memory->device};
  const auto end = reinterpret_cast<uintptr_t>(begin) + num_bytes;
  while (memory->end < end) {  // neighbours that were registered, or mapped, one by one
    const intptr_t view = memory->view;
    memory = ranges.find(reinterpret_cast<const void*>(memory->end));
    if (memory == nullptr || memory->view != view || memory->device != place.device)
      fail("one whose memory ends before the copy");
  }
  return place;
}

struct PlacedCopy {
  uintptr_t src, dst;
  int64_t num_bytes;
  Direction direction;
};

// Copies of one size, as pairs of block ids that count from the lowest addresses. False: too far apart for that.
bool launch_pairs(const PlacedCopy* copies, int64_t count, const Crossover& crossover, cudaStream_t stream,
                  cudaError_t& error) {
  uintptr_t src = copies[0].src, dst = copies[0].dst, src_end = src, dst_end = dst, offsets = 0;
  for (int64_t i = 0; i < count; ++i) {
    src = std::min(src, copies[i].src), dst = std::min(dst, copies[i].dst);
    src_end = std::max(src_end, copies[i].src), dst_end = std::max(dst_end, copies[i].dst);
  }
  for (int64_t i = 0; i < count; ++i) offsets |= (copies[i].src - src) | (copies[i].dst - dst);
  const uintptr_t unit = offsets == 0 ? 16 : offsets & -offsets;
  if (std::max(src_end - src, dst_end - dst) / unit > std::numeric_limits<uint32_t>::max()) return false;
  const SwapLayer base{reinterpret_cast<const void*>(src), reinterpret_cast<void*>(dst)};
  SwapKernel kernel(&base, 1, static_cast<int64_t>(unit), copies[0].num_bytes, count,
                    crossover.kernel_threads.load(std::memory_order_relaxed), stream);
  for (int64_t i = 0; i < count && error == cudaSuccess; ++i) {
    error = kernel.add((copies[i].src - src) / unit, (copies[i].dst - dst) / unit);
  }
  if (error == cudaSuccess) error = kernel.submit();
  return true;
}

}  // namespace

cudaError_t launch(const SwapBlocksBatchParams& p, const Context& context) {
  bool capturing = false;
  MULTIKV_RETURN_IF_FAILED(is_capturing(context.stream, capturing));
  const bool may_batch = !capturing && has_batches();
  static thread_local std::vector<PlacedCopy> by_kernel;
  static thread_local std::vector<int64_t> by_engine;
  by_kernel.clear();
  by_engine.clear();
  Ranges ranges;
  bool are_known = true;
  for (int64_t i = 0; i < p.num_copies; ++i) {
    const SwapCopy& copy = p.copies[i];
    const Place src = place_of(ranges, "src_ptrs", i, copy.src, copy.num_bytes);
    const Place dst = place_of(ranges, "dst_ptrs", i, copy.dst, copy.num_bytes);
    are_known = are_known && src.view != 0 && dst.view != 0;
    const bool is_ours = (src.device == context.device_index || dst.device == context.device_index) &&
                         (src.device < 0 || dst.device < 0 || src.device == dst.device);
    const Direction direction = dst.device < 0 ? kToHost : src.device < 0 ? kFromHost : kWithinDevice;
    const Crossover& crossover = crossover_of(context.device_index, direction);
    const bool has_views = src.view != 0 && dst.view != 0;
    if (is_ours && has_views && copy.num_bytes < copy_engine_from(crossover, may_batch && direction != kWithinDevice)) {
      by_kernel.push_back({src.view, dst.view, copy.num_bytes, direction});
    } else {
      by_engine.push_back(i);
    }
  }
  // Of all that a kernel copies, one launch for each size.
  const auto is_before = [](const PlacedCopy& a, const PlacedCopy& b) {
    return a.direction != b.direction ? a.direction < b.direction : a.num_bytes < b.num_bytes;
  };
  if (!std::is_sorted(by_kernel.begin(), by_kernel.end(), is_before))
    std::stable_sort(by_kernel.begin(), by_kernel.end(), is_before);
  Copies copies(context.stream, context.device_index, may_batch && are_known, p.is_src_access_order_any);
  for (const int64_t i : by_engine)
    MULTIKV_RETURN_IF_FAILED(copies.add(p.copies[i].dst, p.copies[i].src, p.copies[i].num_bytes));
  for (size_t begin = 0, end = 0; begin < by_kernel.size(); begin = end) {
    while (end < by_kernel.size() && !is_before(by_kernel[begin], by_kernel[end])) ++end;
    const Crossover& crossover = crossover_of(context.device_index, by_kernel[begin].direction);
    cudaError_t error = cudaSuccess;
    if (!launch_pairs(&by_kernel[begin], end - begin, crossover, context.stream, error)) {
      for (size_t i = begin; i < end && error == cudaSuccess; ++i) {
        error = copies.add(reinterpret_cast<void*>(by_kernel[i].dst), reinterpret_cast<const void*>(by_kernel[i].src),
                           by_kernel[i].num_bytes);
      }
    }
    if (error != cudaSuccess) return error;
  }
  return copies.submit();
}

}  // namespace multikv::gpu

extern "C" {
// Memory of the host that all GPUs read and write. An error is a text.
__attribute__((visibility("default"))) void multikv_allocate_host(void** address, int64_t num_bytes, char* error,
                                                                  int64_t error_size) {
  const cudaError_t result = cudaHostAlloc(address, num_bytes, cudaHostAllocPortable);
  if (result == cudaSuccess) return;
  static_cast<void>(cudaGetLastError());
  std::snprintf(error, error_size, "%s", cudaGetErrorString(result));
}

__attribute__((visibility("default"))) void multikv_free_host(void* address) {
  static_cast<void>(cudaFreeHost(address));
}

__attribute__((visibility("default"))) void multikv_set_swap_strategy(int strategy) {
  multikv::gpu::strategy.store(static_cast<multikv::gpu::Strategy>(strategy));
}

// kernel_threads < 0: as it is.
__attribute__((visibility("default"))) void multikv_set_swap_crossover(int device, int direction, int64_t in_batches,
                                                                       int64_t one_by_one, int kernel_threads) {
  using namespace multikv::gpu;
  Crossover& crossover = crossover_of(device, static_cast<Direction>(direction));
  const int threads = kernel_threads < 0 ? crossover.kernel_threads.load() : kernel_threads;
  Crossovers::set(crossover, in_batches, one_by_one, threads);
}

__attribute__((visibility("default"))) void multikv_get_swap_crossover(int device, int direction, int64_t* in_batches,
                                                                       int64_t* one_by_one, int* kernel_threads) {
  using namespace multikv::gpu;
  const Crossover& crossover = crossover_of(device, static_cast<Direction>(direction));
  *in_batches = crossover.in_batches.load();
  *one_by_one = crossover.one_by_one.load();
  *kernel_threads = crossover.kernel_threads.load();
}
}
