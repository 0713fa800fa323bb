// Chooses whether a kernel or the copy engines copy the blocks of a swap. docs/swap.md says what each of them costs.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <limits>

namespace multikv::gpu {

enum class Strategy : int32_t { kAuto, kCopyEngine, kKernel };
inline constexpr int kNumStrategies = 3;
inline std::atomic<Strategy> strategy{Strategy::kAuto};

enum class Direction : int32_t { kToHost, kFromHost, kWithinDevice };
inline constexpr int kNumDirections = 3;

// Devices are numbered as in params/swap_params.h: -1 is the host.
inline Direction direction_of(int32_t src_device, int32_t dst_device) {
  return dst_device < 0 ? Direction::kToHost : src_device < 0 ? Direction::kFromHost : Direction::kWithinDevice;
}

inline constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// The sizes from which a run is copied by a copy engine and not by the kernel. For runs of at least this size, a copy
// engine saves more time on the device than its submission costs the host. There are two sizes, because the cost
// depends on how copies are submitted.
struct Crossover {
  std::atomic<int64_t> in_batches;      // bytes of a run, if copies are submitted in batches (costs the host less)
  std::atomic<int64_t> one_by_one;      // bytes of a run, if copies are submitted one by one
  std::atomic<int32_t> kernel_threads;  // threads that saturate the link; 0: as many as there is work for

  void set(int64_t batches, int64_t singles, int32_t threads) {
    in_batches.store(batches, std::memory_order_relaxed);
    one_by_one.store(singles, std::memory_order_relaxed);
    kernel_threads.store(threads, std::memory_order_relaxed);
  }
};

// The crossovers of all devices. multikv.calibrate_swaps() measures those of a device. Until then they are the values
// below, which suit all hosts that were measured: the copy engines move runs of these sizes at over 90% of the link's
// rate, and the threads saturate the link of most hosts.
class Crossovers {
 public:
  Crossovers() {
    for (int32_t device = 0; device < kMaxDevices; ++device) {
      of(device, Direction::kToHost).set(256 << 10, 2 << 20, 1024);
      of(device, Direction::kFromHost).set(256 << 10, 2 << 20, 2048);
      of(device, Direction::kWithinDevice).set(kNever, kNever, 0);
    }
  }
  Crossover& of(int32_t device, Direction direction) {
    return all_[std::clamp(device, 0, kMaxDevices - 1)][static_cast<int>(direction)];
  }

 private:
  static constexpr int32_t kMaxDevices = 64;
  Crossover all_[kMaxDevices][kNumDirections];
};
inline Crossovers crossovers;

// Returns the number of bytes from which a run goes to a copy engine although the kernel could copy it.
inline int64_t copy_engine_from(const Crossover& crossover, bool may_batch) {
  switch (strategy.load(std::memory_order_relaxed)) {
    case Strategy::kCopyEngine: return 0;
    case Strategy::kKernel: return kNever;
    case Strategy::kAuto: break;
  }
  return (may_batch ? crossover.in_batches : crossover.one_by_one).load(std::memory_order_relaxed);
}

}  // namespace multikv::gpu
