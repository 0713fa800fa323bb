// Applies rotary position embedding to pairs in registers.
#pragma once

#include "cuda/core/rope_angles.cuh"

namespace multikv::gpu {

// Rotates kPairs pairs (x, y) of a head: x' = x * cos - y * sin, y' = y * cos + x * sin. As in eager PyTorch, each
// product is rounded to the table's dtype and the sum to the input's; a 16-bit table has the input's dtype.
//
//          first              second
//   kNeox  x0 x1 x2 x3        y0 y1 y2 y3
//   else   x0 y0 x1 y1        x2 y2 x3 y3
template <Float kDtype, Float kTable, int kPairs, bool kNeox>
__device__ inline void rotate(FloatPack<kDtype, kPairs>& first, FloatPack<kDtype, kPairs>& second, const float* cosines,
                              const float* sines) {
  const auto round = [](float2 x) -> float2 {
    if constexpr (kTable == Float::kFloat32) return x;
    const uint32_t bits = rounded<kTable>(x.x, x.y);
    return {element<kTable>(&bits, 0), element<kTable>(&bits, 1)};
  };
  float inputs[2 * kPairs], outputs[2 * kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    inputs[i] = element<kDtype>(first.words, i);
    inputs[kPairs + i] = element<kDtype>(second.words, i);
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at_x = kNeox ? i : 2 * i, at_y = kNeox ? kPairs + i : 2 * i + 1;
    const float x = inputs[at_x], y = inputs[at_y];
    const float2 by_cos = round({x * cosines[i], y * cosines[i]}), by_sin = round({x * sines[i], y * sines[i]});
    outputs[at_x] = by_cos.x - by_sin.y;
    outputs[at_y] = by_cos.y + by_sin.x;
  }
  first = pack_floats<kDtype, kPairs>([&](int i) { return outputs[i]; });
  second = pack_floats<kDtype, kPairs>([&](int i) { return outputs[kPairs + i]; });
}

}  // namespace multikv::gpu
