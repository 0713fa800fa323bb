// fp8 to floats in vectors: what decode_fp8 (../../fp8.h) gives, times a scale, rounded to the output's type.
#pragma once

#include <type_traits>

#include "../../fp8.h"
#include "lanes.h"
#include "numbers.h"

#ifdef MULTIKV_HAS_LANES

namespace multikv::cpu {
namespace {

// Turns sizeof(Bytes) codes at a time into sizeof(Output) vectors.
//
// A code becomes the float16 with the same exponent and mantissa bits, which is the number times an exact power of
// two (and all of fp8's numbers are exact in float16, subnormal ones too); the inverse of that power goes into the
// scale.
template <CacheFormat kFormat, class Output>
class Decoder {
 public:
  // Scales that stay finite when they take the power of two. (NaN is none of them.)
  static bool takes(float scale) { return scale >= -0x1p100f && scale <= 0x1p100f; }

  explicit Decoder(float scale) : factor_(all(scale * kUnit)) {}

  [[gnu::always_inline]] Vectors<sizeof(Output)> operator()(const uint8_t* from) const {
    const auto a = decode(from), b = decode(from + sizeof(Bytes) / 2);
    if constexpr (sizeof(Output) == 2) return {{a.data[0], b.data[0]}};
    else return {{a.data[0], a.data[1], b.data[0], b.data[1]}};
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kFormat);
  // What a number is more than the float16 that stands for it. e5m2fnuz: see below.
  static constexpr float kUnit = kLayout.mantissa_bits == 2 ? 1.0f : std::bit_cast<float>((127 + 15 - kLayout.bias) << 23);

  [[gnu::always_inline]] Vectors<sizeof(Output) / 2> decode(const uint8_t* from) const {
    const Bytes halves = halves_of_codes(words_of_signed_bytes(from));
    const Floats low = product(floats_of_low_halves(halves), factor_);
    const Floats high = product(floats_of_high_halves(halves), factor_);
    if constexpr (std::is_same_v<Output, float>) return {{as_ints(low), as_ints(high)}};
    else if constexpr (std::is_same_v<Output, Half>) return {{halves_of(low, high)}};
    else return {{high_words(rounded(low), rounded(high))}};
  }

  // Codes come as words, the upper byte filled with the sign.
  static Bytes halves_of_codes(Bytes codes) {
    if constexpr (kFormat == CacheFormat::kE5M2) return shift_words_left<8>(codes);
    Bytes halves;
    if constexpr (kLayout.mantissa_bits == 3) {
      halves = bit_and(shift_words_left<7>(codes), all_words(0xbfff));
    } else {
      // e5m2fnuz: the exponent is one less than that of a float16 with these bits. Where it has no room to be, the
      // result is subnormal, and shifting by one place less gives it. The larger of both is the right one.
      const Bytes magnitudes = bit_and(codes, all_words(0x7f));
      const Bytes normal = add_words(shift_words_left<8>(magnitudes), all_words(-0x400));
      halves = bit_or(larger_word(normal, shift_words_left<7>(magnitudes)), bit_and(codes, all_words(0x8000)));
    }
    if constexpr (kLayout.fnuz) return replace_equal_words(halves, 0x8000, 0x7e00);
    // e4m3fn: only in its NaN are all bits ones; there an addition carries into the bit that is missing to float16's
    // NaN.
    return bit_or(halves, bit_and(add_words(halves, all_words(0x80)), all_words(0x4000)));
  }

  // With a bfloat16's rounding in the upper 16 bits. NaN stays one: it has zeros below.
  static Bytes rounded(Floats x) {
    const Bytes bits = as_ints(x);
    const Bytes odd = bit_and(shift_ints_right<16>(bits), all_ints(1));
    return add_ints(add_ints(bits, all_ints(0x7fff)), odd);
  }

  Floats factor_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
