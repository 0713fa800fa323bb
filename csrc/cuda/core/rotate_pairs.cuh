// Applies rotary position embedding to pairs in registers.
#pragma once

#include "cuda/core/rope_angles.cuh"

namespace multikv::gpu {

// Reorders the elements of kPairs pairs in two vectors, between the order of GPT-J and that of NeoX:
//
//             first              second
//   GPT-J     x0 y0 x1 y1        x2 y2 x3 y3
//   NeoX      x0 x1 x2 x3        y0 y1 y2 y3
//
// With one pair, the orders are the same.
template <Float kDtype, int kPairs>
__device__ __forceinline__ void separate_pairs(FloatPack<kDtype, kPairs>& first, FloatPack<kDtype, kPairs>& second) {
  if constexpr (kPairs > 1) {
    constexpr int kWords = sizeof(first.words) / 4;
    const FloatPack<kDtype, kPairs> a = first, b = second;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const uint32_t* words = i < kWords / 2 ? a.words + 2 * i : b.words + 2 * i - kWords;
      first.words[i] = num_bytes(kDtype) == 4 ? words[0] : __byte_perm(words[0], words[1], 0x5410);
      second.words[i] = num_bytes(kDtype) == 4 ? words[1] : __byte_perm(words[0], words[1], 0x7632);
    }
  }
}
template <Float kDtype, int kPairs>
__device__ __forceinline__ void join_pairs(FloatPack<kDtype, kPairs>& first, FloatPack<kDtype, kPairs>& second) {
  if constexpr (kPairs > 1) {
    constexpr int kWords = sizeof(first.words) / 4;
    const FloatPack<kDtype, kPairs> x = first, y = second;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      uint32_t* words = i < kWords / 2 ? first.words + 2 * i : second.words + 2 * i - kWords;
      words[0] = num_bytes(kDtype) == 4 ? x.words[i] : __byte_perm(x.words[i], y.words[i], 0x5410);
      words[1] = num_bytes(kDtype) == 4 ? y.words[i] : __byte_perm(x.words[i], y.words[i], 0x7632);
    }
  }
}

// Rotates kPairs pairs (x, y): x' = x * cos - y * sin, y' = y * cos + x * sin. As in eager PyTorch, each product is
// rounded to the table's dtype and the sum to the input's; a 16-bit table has the input's dtype.
template <Float kDtype, Float kTable, int kPairs>
__device__ __forceinline__ void rotate_separated(FloatPack<kDtype, kPairs>& xs, FloatPack<kDtype, kPairs>& ys,
                                                 const AngleVectors<kTable, kPairs>& angles) {
  const FloatPack<kDtype, kPairs> x = xs, y = ys;
  if constexpr (kTable != Float::kFloat32) {
    constexpr uint32_t kSigns = 0x80008000u;
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(x.words)) / 4; ++i) {
      const uint32_t cosines = angles.cosines.words[i], sines = angles.sines.words[i];
      xs.words[i] = add_words<kDtype>(multiply_words<kDtype>(x.words[i], cosines),
                                      multiply_words<kDtype>(y.words[i], sines ^ kSigns));
      ys.words[i] =
          add_words<kDtype>(multiply_words<kDtype>(y.words[i], cosines), multiply_words<kDtype>(x.words[i], sines));
    }
  } else {
    const Angles<kPairs> a = Angles<kPairs>::of(angles);
    const auto at = [](const FloatPack<kDtype, kPairs>& pack, int i) { return element<kDtype>(pack.words, i); };
    xs = pack_floats<kDtype, kPairs>([&](int i) { return at(x, i) * a.cosines[i] - at(y, i) * a.sines[i]; });
    ys = pack_floats<kDtype, kPairs>([&](int i) { return at(y, i) * a.cosines[i] + at(x, i) * a.sines[i]; });
  }
}

// Rotates the pairs of two vectors, which are in the order of NeoX or of GPT-J.
template <Float kDtype, Float kTable, int kPairs>
__device__ __forceinline__ void rotate(bool is_neox, FloatPack<kDtype, kPairs>& first,
                                       FloatPack<kDtype, kPairs>& second, const AngleVectors<kTable, kPairs>& angles) {
  if (!is_neox) separate_pairs<kDtype, kPairs>(first, second);
  rotate_separated<kDtype, kTable, kPairs>(first, second, angles);
  if (!is_neox) join_pairs<kDtype, kPairs>(first, second);
}

}  // namespace multikv::gpu
