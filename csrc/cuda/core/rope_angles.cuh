// Reads the cosines and sines of rotary position embedding.
#pragma once

#include "cuda/core/pack.cuh"

namespace multikv::gpu {

// The cosines and sines of kPairs neighbouring pairs, as they are in the table.
template <Float kTable, int kPairs>
struct AngleVectors {
  FloatPack<kTable, kPairs> cosines, sines;

  // Reads those of the pairs i, i + 1, ... from a row of the table: `half` cosines, and then as many sines.
  __device__ static __forceinline__ AngleVectors read(const char* row, int64_t half, int64_t i) {
    constexpr int64_t kTableBytes = num_bytes(kTable);
    using Table = FloatPack<kTable, kPairs>;
    return {Table::read(row + i * kTableBytes), Table::read(row + (half + i) * kTableBytes)};
  }
};

// The cosines and sines of kPairs neighbouring pairs.
template <int kPairs>
struct Angles {
  float cosines[kPairs], sines[kPairs];

  template <Float kTable>
  __device__ static __forceinline__ Angles of(const AngleVectors<kTable, kPairs>& vectors) {
    Angles angles;
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      angles.cosines[k] = element<kTable>(vectors.cosines.words, k);
      angles.sines[k] = element<kTable>(vectors.sines.words, k);
    }
    return angles;
  }
};

}  // namespace multikv::gpu
