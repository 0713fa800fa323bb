// Launches of which the second starts before the first has finished. hip/vendor/launch_early.cuh is AMD's twin.
#pragma once

#include <cuda_runtime.h>

namespace multikv::gpu {

// Lets a launch of launch_early() that follows start its thread blocks as soon as there is room for them.
__device__ inline void allow_next_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Waits until the launch before has finished and its writes are visible.
__device__ inline void wait_for_previous_launch() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Launches a kernel whose thread blocks may start before the launch before has finished, if that one calls
// allow_next_launch(). They must call wait_for_previous_launch() before they touch what the other launch writes.
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
