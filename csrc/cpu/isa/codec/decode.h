// fp8 to floats in vectors: what decode_fp8 (../../fp8.h) gives, times a scale, rounded to the output's type.
#pragma once

#include <type_traits>

#include "core/fp8.h"
#include "cpu/isa/codec/numbers.h"
#include "cpu/isa/simd/lanes.h"

#ifdef MULTIKV_HAS_LANES

namespace multikv::cpu {
namespace {

// A float32 with a bfloat16's rounding in its upper 16 bits. NaN stays one if it has zeros below.
inline Bytes rounded(Floats x) {
  const Bytes bits = as_ints(x);
  const Bytes odd = bit_and(shift_ints_right<16>(bits), all_ints(1));
  return add_ints(add_ints(bits, all_ints(0x7fff)), odd);
}

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
  static constexpr int kExponent = kLayout.mantissa_bits == 2 ? 0 : 15 - kLayout.bias;
  static constexpr float kUnit = std::bit_cast<float>((127 + kExponent) << 23);

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

  Floats factor_;
};

// e4m3 to bfloat16. What a code times the scale is rounded to depends on its mantissa only, apart from the exponent:
// the 8 subnormal numbers and the 8 normal ones of one exponent are multiplied once, and all others found by adding
// to the exponent.
template <CacheFormat kFormat>
class BFloat16Decoder {
 public:
  // Scales with which no product leaves bfloat16's normal numbers.
  static bool takes(float scale) {
    const float magnitude = scale < 0 ? -scale : scale;
    return magnitude >= 0x1p-100f && magnitude <= 0x1p100f;
  }

  explicit BFloat16Decoder(float scale)
      : tables_(tables_of_upper_words([&](Bytes codes) {
          // Without the exponent of 1 of the normal numbers, which 1 << kBits below adds again.
          const Bytes exponents = bit_and(shift_ints_left<23 - kBits>(codes), all_ints(1 << 23));
          return subtract_ints(rounded(product(floats_of_ints(codes), all(scale * kSmallest))), exponents);
        })) {}

  [[gnu::always_inline]] Vectors<2> operator()(const uint8_t* from) const {
    const Bytes codes = for_pairs(load(from));
    const Bytes magnitudes = bit_and(codes, all_bytes(0x7f));
    const Bytes normal = bit_or(bit_and(codes, all_bytes((1 << kBits) - 1)), all_bytes(1 << kBits));
    const Bytes indices = smaller_byte(magnitudes, normal);
    const ByteMask is_number = kLayout.fnuz ? differ(codes, all_bytes(0x80)) : differ(magnitudes, all_bytes(0x7f));
    const Bytes lower = else_ones(is_number, look_up(tables_.lower, indices));
    const Bytes upper = else_ones(is_number, look_up(tables_.upper, indices));
    const Bytes rest = else_zeros(is_number, codes), zeros = all_ints(0);
    return {{add_words(low_pairs(lower, upper), sign_and_exponent(low_pairs(zeros, rest))),
             add_words(high_pairs(lower, upper), sign_and_exponent(high_pairs(zeros, rest)))}};
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kFormat);
  static constexpr int kBits = kLayout.mantissa_bits;
  static constexpr float kSmallest = std::bit_cast<float>((128 - kLayout.bias - kBits) << 23);

  // Of codes in the upper bytes of words, where bfloat16 has them.
  static Bytes sign_and_exponent(Bytes codes) {
    constexpr int kExponents = ((1 << (7 - kBits)) - 1) << 7;
    return bit_and(shift_words_right_signed<1 + kBits>(codes), all_words(0x8000 | kExponents));
  }

  Tables tables_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
