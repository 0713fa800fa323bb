// The kernels that isa/ defines once per instruction set. Each works on the tokens [begin, end), on one thread.
#pragma once

#include <cstdint>

#include "params/params.h"

namespace multikv::cpu {

enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512 };

// Whether a kernel's output should bypass the caches.
enum class Stores : uint8_t { kOrdinary, kStreaming };

template <Isa isa>
void reshape_and_cache_flash(const ReshapeAndCacheFlashParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void reshape_and_cache(const ReshapeAndCacheParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void concat_and_cache_mla(const ConcatAndCacheMlaParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void concat_and_cache_mla_rope_fused(const ConcatAndCacheMlaRopeFusedParams& p, int64_t begin, int64_t end,
                                     Stores stores);

// [begin, end): of tokens * heads.
template <Isa isa>
void concat_mla_q(const ConcatMlaQParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void indexer_k_quant_and_cache(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void cp_gather_cache(const CpGatherCacheParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void gather_and_maybe_dequant_cache(const GatherAndMaybeDequantCacheParams& p, int64_t begin, int64_t end,
                                    Stores stores);

template <Isa isa>
void cp_gather_and_upconvert_fp8_kv_cache(const CpGatherAndUpconvertFp8KvCacheParams& p, int64_t begin, int64_t end,
                                          Stores stores);

template <Isa isa>
void cp_gather_indexer_k_quant_cache(const CpGatherIndexerKQuantCacheParams& p, int64_t begin, int64_t end,
                                     Stores stores);

// [begin, end): of elements.
template <Isa isa>
void convert_fp8(const ConvertFp8Params& p, int64_t begin, int64_t end, Stores stores);

// [begin, end): of the bytes of all runs together, in that layer.
template <Isa isa>
void swap_blocks(const SwapBlocksParams& p, int64_t layer, int64_t begin, int64_t end, Stores stores);

// [begin, end): of the bytes of all copies together.
template <Isa isa>
void swap_blocks_batch(const SwapBlocksBatchParams& p, int64_t begin, int64_t end, Stores stores);

}  // namespace multikv::cpu
