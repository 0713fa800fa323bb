// Loads of elements of the caller's index tensors.
#pragma once

#include "core/indices.h"
#include "vendor/gpu.cuh"

namespace multikv::gpu {

// A prefetched index: the constructor issues the load, value() consumes it. Other loads that are issued between the two
// overlap with the load of the index.
// Indices::at() does not allow this overlap: it branches on the dtype, and the branch for int32 extends the sign of the
// index, and so waits for the load. Indices::at() is used where the overlap gains nothing: docs/performance.md.
//
//          int64              int32
//   low_   words[2 * i]       words[i]
//   high_  words[2 * i + 1]   words[i], of which value() keeps the sign
class PrefetchedIndex {
 public:
  PrefetchedIndex() = default;  // -1
  __device__ PrefetchedIndex(const Indices& indices, int64_t i) : is_int64_(indices.is_int64) {
    const auto* words = static_cast<const int32_t*>(indices.data) + (i << is_int64_);
    low_ = words[0];
    high_ = words[is_int64_];
  }
  __device__ int64_t value() const {
    const int32_t high = high_ >> (is_int64_ ? 0 : 31);
    return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(high)) << 32 | static_cast<uint32_t>(low_));
  }

 private:
  int is_int64_ = 1;
  int32_t low_ = -1, high_ = -1;
};

}  // namespace multikv::gpu
