// The GPU backend's side of each op.
#pragma once

#include <cuda_runtime.h>

#include "../params.h"

namespace multikv::gpu {

struct Context {
  cudaStream_t stream;
  int num_multiprocessors;
};

void launch(const ReshapeAndCacheFlashParams& p, const Context& context);
void launch(const CpGatherCacheParams& p, const Context& context);

}  // namespace multikv::gpu
