// AMD's twin of cuda/vendor/launch_early.cuh: a launch starts when the one before has finished.
#pragma once

#include "vendor/gpu.cuh"

namespace multikv::gpu {

__device__ inline void allow_next_launch() {}
__device__ inline void wait_for_previous_launch() {}

template <class Argument>
hipError_t launch_early(void (*kernel)(Argument), unsigned blocks, unsigned threads, hipStream_t stream,
                        const Argument& argument) {
  kernel<<<blocks, threads, 0, stream>>>(argument);
  return hipGetLastError();
}

}  // namespace multikv::gpu
