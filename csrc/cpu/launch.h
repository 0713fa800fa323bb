// The CPU backend's side of each op, and the choice of instruction set that serves them all.
#pragma once

#include "params/params.h"

namespace multikv::cpu {

void launch(const ReshapeAndCacheFlashParams& p);
void launch(const ReshapeAndCacheParams& p);
void launch(const ConcatAndCacheMlaParams& p);
void launch(const ConcatAndCacheMlaRopeFusedParams& p);
void launch(const ConcatAndCacheMlaGroupedParams& p);
void launch(const ConcatMlaQParams& p);
void launch(const ConvertFp8Params& p);
void launch(const CpGatherCacheParams& p);
void launch(const GatherAndMaybeDequantCacheParams& p);
void launch(const CpGatherAndUpconvertFp8KvCacheParams& p);
void launch(const IndexerKQuantAndCacheParams& p);
void launch(const CpGatherIndexerKQuantCacheParams& p);
void launch(const SwapBlocksParams& p);
void launch(const SwapBlocksBatchParams& p);

// Copies between addresses, of which some may be a GPU's: its library does them when it is loaded. True: done; false:
// there is nothing for a GPU in them. On an error the text is not empty.
using BatchOfGpu = bool (*)(const SwapBlocksBatchParams* p, char* error, int64_t error_size);
void set_batch_of_gpu(BatchOfGpu copy);

const char* isa_name();
bool set_isa(const char* name);     // false: unknown, not built, or not supported by this CPU
const char* supported_isa_names();  // comma-separated, the best last

}  // namespace multikv::cpu
