// Clusters: thread blocks that run at the same time and read each other's shared memory.
// hip/vendor/clusters.cuh has the same interface for AMD.
#pragma once

#include <atomic>

#include "vendor/matrix.cuh"

namespace multikv::gpu {

// Whether the calling kernel is compiled for devices with clusters. Elsewhere, the functions do nothing.
#if __CUDA_ARCH__ >= 900
inline constexpr bool kCompilesClusters = true;
#else
inline constexpr bool kCompilesClusters = false;
#endif

// Devices whose attribute is remembered.
inline constexpr int kMaxClusterDevices = 128;

// Waits for all threads of the cluster that have not exited. Writes to shared memory before it are visible after it.
__device__ inline void sync_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Loads what thread block number `block` of the cluster has in its shared memory at the address `own`.
__device__ inline float load_of_block(const float* own, int block) {
  float value = 0.0f;
#if __CUDA_ARCH__ >= 900
  asm volatile("{ .reg .u32 remote; mapa.shared::cluster.u32 remote, %1, %2; ld.shared::cluster.f32 %0, [remote]; }"
               : "=f"(value)
               : "r"(shared_address(own)), "r"(block)
               : "memory");
#endif
  return value;
}

// The most thread blocks of a portable cluster; 0 on devices without clusters.
inline int most_cluster_blocks(int32_t device_index) {
  static std::atomic<int> known[kMaxClusterDevices];  // the result plus 1; 0: not known yet
  auto& cached = known[device_index % kMaxClusterDevices];
  int value = cached.load(std::memory_order_relaxed);
  if (value == 0) {
    int has_clusters = 0;
    static_cast<void>(cudaDeviceGetAttribute(&has_clusters, cudaDevAttrClusterLaunch, device_index));
    value = 1 + (has_clusters != 0 ? 8 : 0);
    cached.store(value, std::memory_order_relaxed);
  }
  return value - 1;
}

// Launches a kernel with clusters of gridDim.x thread blocks.
template <class... Arguments>
cudaError_t launch_cluster_grid(void (*kernel)(Arguments...), dim3 grid, unsigned threads, int shared_bytes,
                                cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = grid.x;
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

}  // namespace multikv::gpu
