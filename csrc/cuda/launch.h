// launch(), which the GPU backend defines for the params of every op. For swap_blocks_batch, its argument is not the
// params but a ResolvedSwapBatch.
#pragma once

#include <cuda_runtime.h>

#include "core/format.h"

namespace multikv::gpu {

// Returns the error from the enclosing function if a call of the CUDA runtime failed.
#define MULTIKV_RETURN_IF_FAILED(call) \
  if (const cudaError_t error = (call); error != cudaSuccess) return error

// The stream and the device that an op is launched on.
struct Context {
  cudaStream_t stream;
  int num_multiprocessors;
  int32_t device_index;
  cudaStream_t (*stream_of)(int32_t device_index);  // torch's current stream of another device
};

// Launches an op on context.stream. The sources of each family, ops/<family>.cu or <family>/*.cu, define it for their
// params; where a definition is missing, the library does not link.
template <class Params>
cudaError_t launch(const Params& p, const Context& context);

// Calls with<kDtype>() for a dtype that is known at run time.
template <class With>
decltype(auto) with_dtype(Float dtype, With with) {
  switch (dtype) {
    case Float::kFloat32: return with.template operator()<Float::kFloat32>();
    case Float::kFloat16: return with.template operator()<Float::kFloat16>();
    case Float::kBFloat16: break;
  }
  return with.template operator()<Float::kBFloat16>();
}

}  // namespace multikv::gpu
