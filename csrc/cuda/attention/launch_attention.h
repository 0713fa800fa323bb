// The launches of attention: one for each kind of kernel. Each file of kernels instantiates one.
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

// Kernels without matrix instructions: all formats and sizes, on all GPUs.
cudaError_t launch_portable_attention(const AttentionProblem& p, const Context& context);

// The most shared memory of a multiprocessor and of a thread block.
struct SharedMemory {
  int multiprocessor_bytes, block_bytes;
};

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

// 48 bits that no other launch uses whose workspace may still hold them: the launches of a process are numbered from a
// place that address space randomisation chooses, and the numbers are mixed.
inline uint64_t next_nonce() {
  static std::atomic<uint64_t> count{reinterpret_cast<uintptr_t>(&count) << 16};
  uint64_t x = count.fetch_add(0x9e3779b97f4a7c15, std::memory_order_relaxed);
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return (x ^ x >> 31) >> 16 | 1;
}

}  // namespace multikv::gpu
