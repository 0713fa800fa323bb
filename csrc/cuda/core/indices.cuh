// Reading the caller's indices.
#pragma once

#include "params/params.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

// An index on its way, for which value() waits. Loads that begin before that are on their way with it. With Indices.at
// they would not be: it has a branch for each dtype, at whose end the sign of a short index is extended, and so waited
// for. It stays where nothing is gained by this: docs/performance.md.
class PendingIndex {
 public:
  __device__ PendingIndex(const Indices& indices, int64_t i) : is_int64_(indices.is_int64) {
    const auto* words = static_cast<const int32_t*>(indices.data) + (i << is_int64_);
    low_ = words[0];
    high_ = words[is_int64_];  // a short one again, for its sign
  }
  __device__ int64_t value() const {
    const int32_t high = high_ >> (is_int64_ ? 0 : 31);
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low_));
  }

 private:
  int is_int64_;
  int32_t low_, high_;
};

}  // namespace multikv::gpu
