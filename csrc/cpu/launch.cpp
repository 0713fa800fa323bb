#include "cpu/launch.h"

#include <atomic>
#include <fstream>
#include <stdexcept>

namespace multikv::cpu {
namespace {

// The size of a core's L2 cache. Outputs of at least this size are written with streaming stores, because an ordinary
// store reads its cache line from memory first and writes the line back later. Streaming stores are faster from this
// size on, even where the output is read right after (measured: docs/performance_cpu.md).
int64_t streaming_crossover_bytes() {
  // sysconf() is not used, because it returns 0 where the C library does not know the CPU.
  static const int64_t bytes = [] {
    int64_t kilobytes = 0;
    std::ifstream("/sys/devices/system/cpu/cpu0/cache/index2/size") >> kilobytes;  // "1024K"
    return (kilobytes > 0 ? kilobytes : 1024) * 1024;
  }();
  return bytes;
}

std::atomic<GpuSwapBatch> gpu_swap_batch{nullptr};

}  // namespace

Stores stores_for(const Work& work) {
  const int64_t weight = work.is_read_soon ? 1 : 16;
  const int64_t bytes_written = work.num_items * work.bytes_written;
  return weight * bytes_written >= streaming_crossover_bytes() ? Stores::kStreaming : Stores::kOrdinary;
}

void set_gpu_swap_batch(GpuSwapBatch function) { gpu_swap_batch.store(function); }

void launch(const SwapBlocksBatchParams& p) {
  if (const GpuSwapBatch swap_batch = gpu_swap_batch.load()) {
    int32_t is_done = 1;
    if (const char* error = swap_batch(&p, &is_done)) throw std::runtime_error(error);
    if (is_done != 0) return;
  }
  launch<SwapBlocksBatchParams>(p);
}

}  // namespace multikv::cpu
