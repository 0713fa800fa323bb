// The GPU backend's side of each op.
#pragma once

#include <cuda_runtime.h>

#include "params/params.h"

namespace multikv::gpu {

struct Context {
  cudaStream_t stream;
  int num_multiprocessors;
  int32_t device_index;
  cudaStream_t (*stream_of)(int32_t device_index);  // torch's current one of another device
};

void launch(const ReshapeAndCacheFlashParams& p, const Context& context);
void launch(const ReshapeAndCacheParams& p, const Context& context);
void launch(const ConcatAndCacheMlaParams& p, const Context& context);
void launch(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context);
void launch(const ConcatAndCacheMlaGroupedParams& p, const Context& context);
void launch(const ConcatMlaQParams& p, const Context& context);
void launch(const ConvertFp8Params& p, const Context& context);
void launch(const CpGatherCacheParams& p, const Context& context);
void launch(const GatherAndMaybeDequantCacheParams& p, const Context& context);
void launch(const CpGatherAndUpconvertFp8KvCacheParams& p, const Context& context);
void launch(const IndexerKQuantAndCacheParams& p, const Context& context);
void launch(const CpGatherIndexerKQuantCacheParams& p, const Context& context);
// These use calls that report errors of their own.
cudaError_t launch(const SwapBlocksParams& p, const Context& context);
cudaError_t launch(const SwapBlocksBatchParams& p, const Context& context);

}  // namespace multikv::gpu
