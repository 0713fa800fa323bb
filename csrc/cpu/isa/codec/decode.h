// fp8 codes to floats in vectors: decode_fp8(code) * scale (core/fp8.h), rounded to the type of the output.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/codec/elements.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// Rounds float32 to nearest even at bit 16, so that the high word is a bfloat16. A NaN must have zeros in its low word:
// otherwise the addition could carry out of its significand.
inline Bytes rounded_at_high_word(Floats x) {
  const Bytes bits = as_ints(x);
  const Bytes odd = bit_and(shift_ints_right<16>(bits), all_ints(1));
  return add_ints(add_ints(bits, all_ints(0x7fff)), odd);
}

// Decodes sizeof(Bytes) codes at a time, by way of float16, which represents every fp8 number exactly:
//
//   e4m3 code     s eeee mmm                      the same exponent and mantissa bits, in another format, are the same
//   float16       s 0eeee mmm0000000              number times a power of two (biases 7 and 15): the scale makes up for
//                                                 it. This holds for subnormal numbers, too.
template <Element kElement, FloatElement Output>
  requires(is_fp8(kElement))
class Decoder {
 public:
  // Scales that stay finite when they are multiplied by kUnit. NaN is not one of them.
  static bool takes(float scale) { return scale >= -0x1p100f && scale <= 0x1p100f; }

  explicit Decoder(float scale) : factor_(all(scale * kUnit)) {}

  [[gnu::always_inline]] Vectors<sizeof(Output)> operator()(const uint8_t* from) const {
    const auto a = decode(from), b = decode(from + sizeof(Bytes) / 2);
    if constexpr (sizeof(Output) == 2) return {{a.data[0], b.data[0]}};
    else return {{a.data[0], a.data[1], b.data[0], b.data[1]}};
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  // fp8 number = float16 number * 2^kExponent. e5m2 has the exponent of float16; float16s_of_codes() gives e5m2fnuz the
  // same.
  static constexpr int kExponent = kLayout.mantissa_bits == 2 ? 0 : 15 - kLayout.bias;
  static constexpr float kUnit = std::bit_cast<float>((127 + kExponent) << 23);

  [[gnu::always_inline]] Vectors<sizeof(Output) / 2> decode(const uint8_t* from) const {
    const Bytes float16s = float16s_of_codes(words_of_signed_bytes(from));
    const Floats low = product(widen_low_float16s(float16s), factor_);
    const Floats high = product(widen_high_float16s(float16s), factor_);
    if constexpr (std::same_as<Output, float>) return {{as_ints(low), as_ints(high)}};
    else if constexpr (std::same_as<Output, Float16>) return {{narrow_to_float16s(low, high)}};
    else return {{high_words(rounded_at_high_word(low), rounded_at_high_word(high))}};
  }

  // `codes` are words: a code in the low byte, copies of its sign in the high byte.
  static Bytes float16s_of_codes(Bytes codes) {
    if constexpr (kElement == Element::kE5M2) return shift_words_left<8>(codes);
    Bytes float16s;
    if constexpr (kLayout.mantissa_bits == 3) {
      float16s = bit_and(shift_words_left<7>(codes), all_words(0xbfff));
    } else {
      float16s = float16s_of_e5m2fnuz(codes);
    }
    if constexpr (kLayout.fnuz) return replace_equal_words(float16s, 0x8000, 0x7e00);
    // e4m3fn: 0x7f, the NaN, is the one code whose exponent and mantissa are all ones. Adding 1 to the mantissa carries
    // into the exponent bit that e4m3fn lacks:  0 1111 111 0000000 + 1 0000000 = 1 0000 000 0000000.
    return bit_or(float16s, bit_and(add_words(float16s, all_words(0x80)), all_words(0x4000)));
  }

  // The exponent of e5m2fnuz is biased by 16, that of float16 by 15, so the exponent field decreases by one. Where it
  // is 0 or 1, the float16 is subnormal, and that is the code shifted by one bit less. The larger of both results is
  // right.
  static Bytes float16s_of_e5m2fnuz(Bytes codes) {
    const Bytes magnitudes = bit_and(codes, all_words(0x7f));
    const Bytes normal = add_words(shift_words_left<8>(magnitudes), all_words(-0x400));
    return bit_or(larger_word(normal, shift_words_left<7>(magnitudes)), bit_and(codes, all_words(0x8000)));
  }

  Floats factor_;
};

// Decodes e4m3 to bfloat16, sizeof(Bytes) codes at a time, by a table of 16 products. How a code times the scale is
// rounded depends on its mantissa alone, because bfloat16 has all exponents that can occur. So the table holds the
// products of the codes 0 .. 7 (subnormal) and 8 .. 15 (the smallest normal exponent); the exponent of another code is
// added to the product:
//
//   code           s eeee mmm
//   table index           1mmm   if eeee > 0, otherwise 0mmm
//   exponent       s 0000eeee 0000000   added to the product as a word
template <Element kElement>
  requires(is_e4m3(kElement))
class BFloat16Decoder {
 public:
  // Scales with which every product is a normal bfloat16.
  static bool takes(float scale) {
    const float magnitude = scale < 0 ? -scale : scale;
    return magnitude >= 0x1p-100f && magnitude <= 0x1p100f;
  }

  explicit BFloat16Decoder(float scale)
      : tables_(tables_of_high_words([&](Bytes codes) {
          // Products of normal codes are stored without the exponent 1, which sign_and_exponent() adds again.
          const Bytes exponents = bit_and(shift_ints_left<23 - kBits>(codes), all_ints(1 << 23));
          const Floats products = product(floats_of_ints(codes), all(scale * kSmallest));
          return subtract_ints(rounded_at_high_word(products), exponents);
        })) {}

  [[gnu::always_inline]] Vectors<2> operator()(const uint8_t* from) const {
    const Bytes codes = for_pairs(load(from));
    const Bytes magnitudes = bit_and(codes, all_bytes(0x7f));
    const Bytes normal = bit_or(bit_and(codes, all_bytes((1 << kBits) - 1)), all_bytes(1 << kBits));
    const Bytes indices = smaller_byte(magnitudes, normal);
    const ByteMask is_number = kLayout.fnuz ? differ(codes, all_bytes(0x80)) : differ(magnitudes, all_bytes(0x7f));
    const Bytes low = else_ones(is_number, look_up(tables_.low, indices));
    const Bytes high = else_ones(is_number, look_up(tables_.high, indices));
    const Bytes rest = else_zeros(is_number, codes), zeros = all_ints(0);
    return {{add_words(low_pairs(low, high), sign_and_exponent(low_pairs(zeros, rest))),
             add_words(high_pairs(low, high), sign_and_exponent(high_pairs(zeros, rest)))}};
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kBits = kLayout.mantissa_bits;
  static constexpr float kSmallest = std::bit_cast<float>((128 - kLayout.bias - kBits) << 23);  // the number of code 1

  // From codes in the high bytes of words to the sign and the exponent where bfloat16 has them.
  static Bytes sign_and_exponent(Bytes codes) {
    constexpr int kExponents = ((1 << (7 - kBits)) - 1) << 7;
    return bit_and(shift_words_right_signed<1 + kBits>(codes), all_words(0x8000 | kExponents));
  }

  Tables tables_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
