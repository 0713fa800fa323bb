// Reads the cosines and sines of rotary position embedding.
#pragma once

#include "cuda/core/pack.cuh"

namespace multikv::gpu {

// The cosines and sines of kPairs neighbouring pairs.
template <int kPairs>
struct Angles {
  float cosines[kPairs], sines[kPairs];
};

// Reads the cosines and sines of the pairs i, i + 1, ... from a row of the table, which has `half` of each.
template <Float kTable, int kPairs>
__device__ __forceinline__ Angles<kPairs> read_angles(const char* row, int64_t half, int64_t i) {
  constexpr int64_t kTableBytes = num_bytes(kTable);
  using Table = FloatPack<kTable, kPairs>;
  const Table cosines = Table::read(row + i * kTableBytes), sines = Table::read(row + (half + i) * kTableBytes);
  Angles<kPairs> angles;
#pragma unroll
  for (int k = 0; k < kPairs; ++k) {
    angles.cosines[k] = element<kTable>(cosines.words, k);
    angles.sines[k] = element<kTable>(sines.words, k);
  }
  return angles;
}

}  // namespace multikv::gpu
