// AMD's twin of cuda/vendor/warpgroup.cuh. AMD GPUs have none of these instructions, so that the functions are only
// declared.
#pragma once

#include "vendor/gpu.cuh"

namespace multikv::gpu {

inline constexpr bool kHasWarpgroupInstructions = false, kCompilesWarpgroups = false;
inline constexpr int kWarpgroupThreads = 128;

template <int kCount>
__device__ void release_registers();
template <int kCount>
__device__ void take_registers();

class Barrier {
 public:
  __device__ void start(uint32_t count);
  __device__ void arrive();
  __device__ void wait(uint32_t parity);
};

__device__ bool any_in_warpgroup(int id, bool predicate);
__device__ void sync_warpgroup(int id);
__device__ void publish_to_matrix_instructions();
__device__ int opaque(int x);
__device__ const char* opaque(const char* x);
__device__ void copy_async_8(uint32_t to, const void* from, bool is_valid);
struct TileDescriptor {
  __device__ static TileDescriptor of(uint32_t address, uint32_t block_bytes, uint32_t columns_bytes);
  __device__ TileDescriptor operator+(uint32_t bytes) const;
};
__device__ void begin_products();
__device__ void commit_products();
template <int kGroups>
__device__ void wait_for_products();
template <int kCount>
__device__ void pin(float (&c)[kCount][4]);
template <Float kDtype>
__device__ void start_scores(float (&c)[8][4], TileDescriptor a, TileDescriptor b, bool adds);
template <Float kDtype>
__device__ void start_outputs(float (&c)[8][4], const uint32_t (&a)[4], TileDescriptor b, bool adds);
template <Float kDtype>
__device__ void start_outputs(float (&c)[16][4], const uint32_t (&a)[4], TileDescriptor b, bool adds);

}  // namespace multikv::gpu
