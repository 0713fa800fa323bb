#include "cpu/parallel.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

namespace multikv::cpu {
namespace {

// A loop that moves at most this many bytes runs on one thread, because waking a thread takes about 8 us. Two threads
// move 295 KB in 1.1 to 1.2 times the time of one thread, and 393 KB in 0.77 times (measured: docs/performance_cpu.md).
constexpr int64_t kGrainBytes = 320 * 1024;

int64_t grain(int64_t bytes_per_item) {
  return std::max<int64_t>(1, kGrainBytes / std::max<int64_t>(1, bytes_per_item));
}

}  // namespace

void parallel_for(int64_t count, int64_t bytes_per_item, void (*body)(int64_t, int64_t, void*), void* context) {
  const int64_t grain_size = grain(bytes_per_item);
  if (count <= grain_size) {
    body(0, count, context);
  } else {
    TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, grain_size, body, context));
  }
}

bool is_parallel(int64_t count, int64_t bytes_per_item) {
  uint32_t num_threads = 1;
  if (count <= grain(bytes_per_item)) return false;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&num_threads));
  return num_threads > 1;
}

}  // namespace multikv::cpu
