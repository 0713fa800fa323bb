// The launches of attention: one for each kind of kernel. Each .cu file of kernels defines one of them.
#pragma once

#include <atomic>

#include "cuda/attention/problem.h"
#include "cuda/core/grid.h"

namespace multikv::gpu {

// The largest head size that kernels with matrix instructions serve.
inline constexpr int kMaxMatrixHeadSize = 256;

// Kernels with matrix instructions, for caches of kElement.
template <Element kElement>
cudaError_t launch_matrix_attention(const AttentionProblem& p, const Context& context);

// The kernel for many query rows that Hopper GPUs have, for caches of kElement. Returns cudaErrorNotSupported if this
// GPU has none, if a cache has no vectors, or if a head size is above 128.
template <Element kElement>
cudaError_t launch_warpgroup_attention(const AttentionProblem& p, const Context& context);

// Kernels without matrix instructions: all formats and sizes, on all GPUs.
cudaError_t launch_portable_attention(const AttentionProblem& p, const Context& context);

// Joins the partial results that launch_matrix_attention's kernels have left in p.workspace (join.cu).
cudaError_t launch_join(const AttentionProblem& p, int64_t num_workers, const Context& context);

// The most shared memory of a multiprocessor and of a thread block.
struct SharedMemory {
  int multiprocessor_bytes, block_bytes;
};

// The device reserves this much of a multiprocessor's shared memory for each thread block, beside what the thread block
// asks for.
inline constexpr int kReservedSharedBytes = 1024;

// Devices whose attributes are remembered.
inline constexpr int kMaxDevices = 128;

inline SharedMemory shared_memory(int32_t device_index) {
  static std::atomic<int64_t> known[kMaxDevices];
  auto& cached = known[device_index % kMaxDevices];
  int64_t value = cached.load(std::memory_order_relaxed);
  if (value == 0) {
    int multiprocessor = 0, block = 0;
    static_cast<void>(
        cudaDeviceGetAttribute(&multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device_index));
    static_cast<void>(cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device_index));
    value = int64_t{multiprocessor} << 32 | block;
    cached.store(value, std::memory_order_relaxed);
  }
  return {static_cast<int>(value >> 32), static_cast<int>(value & INT32_MAX)};
}

// Whether the device is a Hopper GPU: no other one has these instructions.
inline bool has_warpgroup_instructions(int32_t device_index) {
  static std::atomic<int> known[kMaxDevices];  // 10 * major + minor
  auto& cached = known[device_index % kMaxDevices];
  int capability = cached.load(std::memory_order_relaxed);
  if (capability == 0) {
    int major = 0, minor = 0;
    static_cast<void>(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_index));
    static_cast<void>(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_index));
    capability = 10 * major + minor;
    cached.store(capability, std::memory_order_relaxed);
  }
  return capability == 90;
}

// Lets thread blocks of a kernel have `bytes` of dynamic shared memory.
template <auto kernel>
cudaError_t allow_shared_memory(int32_t device_index, int bytes) {
  static std::atomic<int> allowed[kMaxDevices];
  auto& most = allowed[device_index % kMaxDevices];
  if (most.load(std::memory_order_relaxed) >= bytes) return cudaSuccess;
  MULTIKV_RETURN_IF_FAILED(
      cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  most.store(bytes, std::memory_order_relaxed);
  return cudaSuccess;
}

}  // namespace multikv::gpu
