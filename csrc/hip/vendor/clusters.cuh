// AMD's twin of cuda/vendor/clusters.cuh. AMD's GPUs have no clusters: most_cluster_blocks() returns 0, and the other
// functions are only declared.
#pragma once

#include "vendor/gpu.cuh"

namespace multikv::gpu {

inline constexpr bool kCompilesClusters = false;

__device__ void sync_cluster();
__device__ float load_of_block(const float* own, int block);
inline int most_cluster_blocks(int32_t) { return 0; }
template <class... Arguments>
hipError_t launch_cluster_grid(void (*kernel)(Arguments...), dim3 grid, unsigned threads, int shared_bytes,
                               hipStream_t stream, const Arguments&... arguments);

}  // namespace multikv::gpu
