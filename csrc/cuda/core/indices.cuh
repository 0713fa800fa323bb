// Reading the caller's indices.
#pragma once

#include "core/indices.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

// A prefetched index: the constructor issues the load, value() consumes it. Other loads that are issued in between
// overlap with this load. They would not overlap with Indices::at: it branches on the dtype, and a branch that
// sign-extends an int32 waits for the load. Indices::at is used where the overlap gains nothing: docs/performance.md.
class PrefetchedIndex {
 public:
  __device__ PrefetchedIndex(const Indices& indices, int64_t i) : is_int64_(indices.is_int64) {
    const auto* words = static_cast<const int32_t*>(indices.data) + (i << is_int64_);
    low_ = words[0];
    high_ = words[is_int64_];  // of an int32 the same word again, for its sign
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
