// Included before everything else where clang-22 compiles with the headers of HIP 5, as Debian 12 has them. Clang no
// longer defines two things that those headers use.
#pragma once

// The number of threads of a wave. Clang 22 has removed this macro.
#if defined(__GFX10__) || defined(__GFX11__) || defined(__GFX12__)
#define __AMDGCN_WAVEFRONT_SIZE 32
#else
#define __AMDGCN_WAVEFRONT_SIZE 64
#endif

#include <hip/hip_runtime.h>

// The fence of __syncthreads(). It was in the device library hip.bc, which clang no longer links.
extern "C" __device__ inline __attribute__((always_inline)) void __atomic_work_item_fence(__cl_mem_fence_flags,
                                                                                          __memory_order order,
                                                                                          __memory_scope scope) {
  if (scope == __memory_scope_work_group && order == __memory_order_release) {
    __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");
  } else if (scope == __memory_scope_work_group && order == __memory_order_acquire) {
    __builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  } else {
    __builtin_amdgcn_fence(__ATOMIC_SEQ_CST, "");
  }
}
