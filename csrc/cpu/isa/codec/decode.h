// Decodes fp8 codes with vector operations: decode_fp8(code) * scale (core/fp8.h), rounded to the type of the output.
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

// Decodes sizeof(Bytes) codes at a time. A code becomes a float16, which a CPU instruction widens to float32.
//
//   e4m3 code     s  eeee mmm
//   float16       s 0eeee mmm0000000
//
// The fp8 number is 2^kExponent times the float16 with the same exponent and mantissa bits, because the exponents of
// the two formats have different biases. This holds for subnormal numbers too. factor_ is scale * 2^kExponent.
template <Element kElement, FloatElement Output>
  requires(is_fp8(kElement))
class Decoder {
 public:
  // Returns true for scales whose product with kUnit is certainly finite; false for NaN.
  static bool takes(float scale) { return scale >= -0x1p100f && scale <= 0x1p100f; }

  explicit Decoder(float scale) : factor_(all(scale * kUnit)) {}

  [[gnu::always_inline]] Vectors<sizeof(Output)> operator()(const uint8_t* from) const {
    const auto a = decode(from), b = decode(from + sizeof(Bytes) / 2);
    if constexpr (sizeof(Output) == 2) return {{a.data[0], b.data[0]}};
    else return {{a.data[0], a.data[1], b.data[0], b.data[1]}};
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  // fp8 number = float16 number * 2^kExponent. The exponents of e5m2 and float16 have the same bias, and
  // float16s_of_e5m2fnuz() changes the bias of e5m2fnuz to that of float16.
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

  // Each word of `codes` has a code in its low byte and copies of the code's sign in its high byte. For e4m3:
  //
  //   word of codes   ssssssss seeeemmm
  //   << 7            sseeeemm m0000000
  //   & 0xbfff        s0eeeemm m0000000
  static Bytes float16s_of_codes(Bytes codes) {
    if constexpr (kElement == Element::kE5M2) return shift_words_left<8>(codes);
    Bytes float16s;
    if constexpr (kLayout.mantissa_bits == 3) {
      float16s = bit_and(shift_words_left<7>(codes), all_words(0xbfff));
    } else {
      float16s = float16s_of_e5m2fnuz(codes);
    }
    if constexpr (kLayout.fnuz) return replace_equal_words(float16s, 0x8000, 0x7e00);
    // e4m3fn: 0x7f, the NaN, is the one code whose exponent and mantissa are all ones. Only for it does adding 1 to the
    // mantissa carry into the exponent bit that e4m3fn lacks. With this bit set, the exponent of the float16 is all
    // ones, so the float16 is NaN:
    //
    //   float16     s 01111 1110000000
    //   + 0x80      s 10000 0000000000
    //   & 0x4000    0 10000 0000000000
    //   | float16   s 11111 1110000000
    return bit_or(float16s, bit_and(add_words(float16s, all_words(0x80)), all_words(0x4000)));
  }

  // The exponent of e5m2fnuz is biased by 16, that of float16 by 15, so the exponent field decreases by one. If the
  // field of the code is 0 or 1, the float16 is subnormal: its bits are the bits of the code's magnitude << 7, not
  // << 8. The larger of the two words, `normal` and magnitudes << 7, is always the right one.
  static Bytes float16s_of_e5m2fnuz(Bytes codes) {
    const Bytes magnitudes = bit_and(codes, all_words(0x7f));
    const Bytes normal = add_words(shift_words_left<8>(magnitudes), all_words(-0x400));
    return bit_or(larger_word(normal, shift_words_left<7>(magnitudes)), bit_and(codes, all_words(0x8000)));
  }

  Floats factor_;
};

// Decodes e4m3 to bfloat16, sizeof(Bytes) codes at a time, with a table of 16 products. No product is subnormal or
// overflows (see takes()), so the rounding of a product depends only on the mantissa of its code. The table holds the
// rounded products of the codes 0 .. 7 (subnormal) and 8 .. 15 (the smallest normal exponent). The exponent of a code
// is added to the table entry at the code's index:
//
//   code           s eeee mmm
//   table index           1mmm   if eeee > 0, otherwise 0mmm
//   exponent       s 0000eeee 0000000   added to the table entry as a word
template <Element kElement>
  requires(is_e4m3(kElement))
class BFloat16Decoder {
 public:
  // Returns true for scales whose product with every nonzero e4m3 number is a normal bfloat16.
  static bool takes(float scale) {
    const float magnitude = scale < 0 ? -scale : scale;
    return magnitude >= 0x1p-100f && magnitude <= 0x1p100f;
  }

  explicit BFloat16Decoder(float scale)
      : tables_(tables_of_high_words([&](Bytes codes) {
          // operator() adds the exponent field of the code. The field of the codes 8 .. 15 is 1, so the exponents of
          // their table entries are reduced by 1.
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
    const Bytes codes_or_zero = else_zeros(is_number, codes), zeros = all_ints(0);
    return {{add_words(low_pairs(low, high), sign_and_exponent(low_pairs(zeros, codes_or_zero))),
             add_words(high_pairs(low, high), sign_and_exponent(high_pairs(zeros, codes_or_zero)))}};
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kBits = kLayout.mantissa_bits;
  static constexpr float kSmallest = std::bit_cast<float>((128 - kLayout.bias - kBits) << 23);  // the value of code 1

  // Moves the sign and the exponent of the codes, which are in the high bytes of words, to their bits in bfloat16:
  //
  //   word of codes   seeeemmm 00000000
  //   >> 4 (signed)   ssssseee emmm0000
  //   & 0x8780        s0000eee e0000000
  static Bytes sign_and_exponent(Bytes codes) {
    constexpr int kExponents = ((1 << (7 - kBits)) - 1) << 7;
    return bit_and(shift_words_right_signed<1 + kBits>(codes), all_words(0x8000 | kExponents));
  }

  Tables tables_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
