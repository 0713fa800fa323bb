// AMD's twin of cuda/vendor/matrix.cuh. Matrix instructions are not used yet: the portable kernels serve instead. So
// the functions are only declared.
#pragma once

#include "vendor/gpu.cuh"

namespace multikv::gpu {

inline constexpr bool kHasMatrixInstructions = false;

__device__ uint32_t shared_address(const void* shared);
__device__ void copy_async(uint32_t to, const void* from, bool is_valid);
__device__ void copy_async(uint32_t to, const void* from);
__device__ void keep(const char*& address);
__device__ void copy_async_if(bool does_copy, uint32_t to, const void* from);
__device__ void load_vector(uint32_t (&words)[2], const void* from);
__device__ void load_vector(uint32_t (&words)[4], const void* from);
__device__ void load_vector_if(bool does_load, uint32_t (&words)[2], const void* from);
__device__ void load_vector_if(bool does_load, uint32_t (&words)[4], const void* from);
__device__ void commit_copies();
template <int kGroups>
__device__ void wait_for_copies();
__device__ void sync_warp();
__device__ void load_chunk(uint32_t (&out)[4], uint32_t address);
__device__ void load_transposed(uint32_t (&out)[4], uint32_t row_address);
template <Float kDtype>
__device__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <Element kElement>
__device__ uint32_t halves_from_fp8(uint32_t codes);
__device__ uint32_t permute_bytes(uint32_t low, uint32_t high, uint32_t order);

}  // namespace multikv::gpu
