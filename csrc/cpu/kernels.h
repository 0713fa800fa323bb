// The kernels that isa/ defines once per instruction set. Each works on the tokens [begin, end), on one thread.
#pragma once

#include <cstdint>

#include "../params.h"

namespace multikv::cpu {

enum class Isa : uint8_t { kBaseline, kAvx2, kAvx512 };

// Whether a kernel's output should bypass the caches.
enum class Stores : uint8_t { kOrdinary, kStreaming };

template <Isa isa>
void reshape_and_cache_flash(const ReshapeAndCacheFlashParams& p, int64_t begin, int64_t end, Stores stores);

template <Isa isa>
void cp_gather_cache(const CpGatherCacheParams& p, int64_t begin, int64_t end, Stores stores);

}  // namespace multikv::cpu
