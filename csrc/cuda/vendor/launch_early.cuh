// Programmatic dependent launch: a kernel starts before the previous kernel of the stream has finished.
// hip/vendor/launch_early.cuh has the same interface for AMD.
#pragma once

#include <cuda_runtime.h>

namespace multikv::gpu {

// Lets the next kernel start as soon as every thread block of this kernel has called this function or has exited. The
// call has no effect on a next kernel that is launched without launch_early().
__device__ inline void allow_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the previous kernel has finished and its writes are visible.
__device__ inline void wait_for_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a kernel that starts early if the previous kernel of the stream calls allow_next_launch(). It must call
// wait_for_previous_launch() before it touches memory that the previous kernel writes.
template <class Argument>
cudaError_t launch_early(void (*kernel)(Argument), unsigned blocks, unsigned threads, cudaStream_t stream,
                         const Argument& argument) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, argument);
}

}  // namespace multikv::gpu
