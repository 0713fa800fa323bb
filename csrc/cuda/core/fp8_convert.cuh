// Conversion of vectors to and from fp8.
#pragma once

#include <iterator>

#include "core/quotient.h"
#include "cuda/core/pack.cuh"

namespace multikv::gpu {

// Calls with<kElement>() if this GPU has an instruction for the fp8 type `element`, else other(). The type is known
// only at run time, but it is the same for all threads, so that the branches do not diverge.
template <int kIndex = 0, class With, class Other>
__device__ inline auto with_fp8_instruction(Element element, With with, Other other) {
  if constexpr (kIndex == std::size(kFp8Elements)) {
    return other();
  } else {
    constexpr Element kElement = kFp8Elements[kIndex];
    if constexpr (has_fp8_instruction<kElement>()) {
      if (element == kElement) return with.template operator()<kElement>();
    }
    return with_fp8_instruction<kIndex + 1>(element, with, other);
  }
}

// Returns the codes of value(0), ..., value(kCount - 1), the first in the lowest byte; kCount is 1 or a multiple of 4.
// encode(low, high) returns the codes of two floats, that of `low` in the low byte.
template <int kCount, class Value, class Encode>
__device__ inline Pack<kCount> encode_with(Value value, Encode encode) {
  Pack<kCount> out;
  if constexpr (kCount == 1) {
    out.words[0] = encode(value(0), 0.0f);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const uint32_t low = encode(value(i), value(i + 1));
      out.words[i / 4] = low | encode(value(i + 2), value(i + 3)) << 16;
    }
  }
  return out;
}

// Returns x divided by the scale that `quotient` was constructed from.
__device__ inline float divide(const Quotient& quotient, float x) {
  return quotient.divide(x, [](float a, float b, float c) { return fmaf(a, b, c); });
}

// Encodes kCount elements of type kDtype as fp8, after by_scale(x) has divided each by its scale.
template <Float kDtype, int kCount, class Divide>
__device__ inline Pack<kCount> quantise(const uint32_t* words, Element fp8, Divide by_scale) {
  const auto divided = [&](int i) { return by_scale(element<kDtype>(words, i)); };
  return with_fp8_instruction(
      fp8, [&]<Element kCode>() { return encode_with<kCount>(divided, convert_to_fp8<kCode>); },
      [&] {
        return encode_with<kCount>(divided, [layout = layout_of(fp8)](float low, float high) {
          return encode_fp8(low, layout) | static_cast<uint32_t>(encode_fp8(high, layout)) << 8;
        });
      });
}

// Decodes kCount codes, multiplies each by `scale`, and rounds the products to kDtype.
template <Float kDtype, int kCount>
__device__ inline FloatPack<kDtype, kCount> dequantise(const uint32_t* words, float scale, Element fp8) {
  float decoded[kCount + kCount % 2];
  const auto decode_with = [&](auto decode) {
#pragma unroll
    for (int i = 0; i < kCount; i += 2) {
      const float2 pair = decode(static_cast<uint16_t>(words[i / 4] >> (i % 4 * 8)));
      decoded[i] = pair.x;
      decoded[i + 1] = pair.y;
    }
  };
  with_fp8_instruction(
      fp8, [&]<Element kCode>() { decode_with(convert_from_fp8<kCode>); },
      [&] {
        decode_with([layout = layout_of(fp8)](uint16_t codes) -> float2 {
          return {decode_fp8(static_cast<uint8_t>(codes), layout),
                  decode_fp8(static_cast<uint8_t>(codes >> 8), layout)};
        });
      });
  return pack_floats<kDtype, kCount>([&](int i) { return decoded[i] * scale; });
}

}  // namespace multikv::gpu
