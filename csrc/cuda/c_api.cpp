// Defines the functions that c_api.h declares for a GPU library.
#include "c_api.h"

#include <cuda_runtime.h>

#include <exception>
#include <string>
#include <string_view>

#include "cuda/backend.h"
#include "cuda/context.h"
#include "cuda/swap/addresses.h"
#include "cuda/swap/strategy.h"
#include "multikv_build_id.h"
#include "vendor/driver.h"

namespace gpu = multikv::gpu;

namespace {

// Returns the text of an error if there is no crossover for a device and a direction, else nullptr.
const char* why_no_crossover(int32_t device, int32_t direction) {
  if (device < 0) return "device: expected at least 0";
  if (direction < 0 || direction >= gpu::kNumDirections) return "direction: expected 0, 1 or 2";
  return nullptr;
}

}  // namespace

int32_t multikv_abi_version() { return MULTIKV_ABI_VERSION; }

const char* multikv_build_id() { return MULTIKV_BUILD_ID; }

void multikv_set_check_indices(int32_t enabled) { gpu::set_check_indices(enabled != 0); }

const char* multikv_gpu_swap_batch(const void* params, int32_t* is_done) {
  constexpr std::string_view kOp = "swap_blocks_batch";
  static thread_local std::string text;
  *is_done = 1;
  try {
    // cudaGetDevice() fails on a host without a GPU. It is called only if this process has initialised a GPU.
    int device_index = 0;
    const bool is_used = gpu::has_any_context();
    if (is_used) gpu::check(kOp, cudaGetDevice(&device_index));
    if (!is_used || !gpu::has_context(device_index)) {
      *is_done = 0;
      return nullptr;
    }
    const auto& batch = *static_cast<const multikv::SwapBlocksBatchParams*>(params);
    gpu::check(kOp, gpu::launch(gpu::resolve_addresses(batch), gpu::context_of(device_index)));
  } catch (const std::exception& caught) {
    text = caught.what();
    return text.c_str();
  }
  return nullptr;
}

const char* multikv_allocate_host(void** address, int64_t num_bytes) {
  const cudaError_t error = cudaHostAlloc(address, num_bytes, gpu::kPinnedFlags);
  if (error == cudaSuccess) return nullptr;
  static_cast<void>(cudaGetLastError());  // clears the error, which the next launch would report otherwise
  return cudaGetErrorString(error);
}

void multikv_free_host(void* address) { static_cast<void>(cudaFreeHost(address)); }

const char* multikv_set_swap_strategy(int32_t strategy) {
  if (strategy < 0 || strategy >= gpu::kNumStrategies) return "strategy: expected 0, 1 or 2";
  gpu::strategy.store(static_cast<gpu::Strategy>(strategy));
  return nullptr;
}

const char* multikv_set_swap_crossover(int32_t device, int32_t direction, int64_t in_batches, int64_t one_by_one,
                                       int32_t kernel_threads) {
  if (const char* error = why_no_crossover(device, direction)) return error;
  gpu::Crossover& crossover = gpu::crossovers.of(device, static_cast<gpu::Direction>(direction));
  const int32_t threads = kernel_threads < 0 ? crossover.kernel_threads.load() : kernel_threads;
  crossover.set(in_batches, one_by_one, threads);
  return nullptr;
}

const char* multikv_get_swap_crossover(int32_t device, int32_t direction, int64_t* in_batches, int64_t* one_by_one,
                                       int32_t* kernel_threads) {
  if (const char* error = why_no_crossover(device, direction)) return error;
  const gpu::Crossover& crossover = gpu::crossovers.of(device, static_cast<gpu::Direction>(direction));
  *in_batches = crossover.in_batches.load();
  *one_by_one = crossover.one_by_one.load();
  *kernel_threads = crossover.kernel_threads.load();
  return nullptr;
}
