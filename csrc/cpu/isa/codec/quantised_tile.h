// Quantises a tile to e4m3 codes. All elements of a tile have one scale, which is computed from their largest
// magnitude.
#pragma once

#include "core/tile_scale.h"
#include "cpu/isa/codec/amax.h"
#include "cpu/isa/codec/convert.h"

namespace multikv::cpu {
namespace {

#ifdef MULTIKV_HAS_SIMD

#if defined(__AVX512BW__)
inline bool has_word_below(Bytes x, int limit) { return _mm512_cmplt_epi16_mask(x, all_words(limit)) != 0; }
inline bool has_negative_byte(Bytes x) { return _mm512_movepi8_mask(x) != 0; }
template <int kBits> Bytes shift_words_right(Bytes x) { return _mm512_srli_epi16(x, kBits); }
#else
inline bool has_word_below(Bytes x, int limit) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi16(all_words(limit), x)) != 0;
}
inline bool has_negative_byte(Bytes x) { return _mm256_movemask_epi8(x) != 0; }
template <int kBits> Bytes shift_words_right(Bytes x) { return _mm256_srli_epi16(x, kBits); }
#endif

// Encodes bfloat16 elements with integer operations on 16-bit words. The scale is a power of two, and no quotient is
// above the largest e4m3 number, because the scale is computed from the elements. The division subtracts exponents, and
// the rounding drops kDropped = 4 bits:
//
//   bfloat16     s eeeeeeee mmmmmmm
//   code         s     eeee mmm
//
// The codes of NaN, of infinities and of subnormal magnitudes (see largest_zero_) are wrong; has_wrong_codes() finds
// them.
template <Element kElement>
  requires(is_e4m3(kElement))
class NormalEncoder {
 public:
  // Up to this scale, encode_words() turns infinities and NaN into codes above 0x7f. has_wrong_codes() recognises them
  // by such a code.
  static bool takes(float scale) { return scale <= 0x1p100f; }

  explicit NormalEncoder(float scale)
      : smallest_normal_(static_cast<int>(std::bit_cast<uint32_t>(scale) >> 23) + 1 - kLayout.bias) {}

  [[gnu::always_inline]] Bytes encode(const BFloat16* from) {
    const Bytes a = load(from), b = load(from + sizeof(Bytes) / 2);
    const Bytes codes = saturate_words(encode_words(a), encode_words(b));
    Bytes signs = bit_and(sign_bytes(a, b), all_words(0x8080));
    if constexpr (kLayout.fnuz) signs = keep_if_nonzero_byte(codes, signs);
    all_codes_ = bit_or(all_codes_, codes);
    return in_order(bit_or(codes, signs));
  }

  bool has_wrong_codes() const {
    // There are num_subnormal subnormal magnitudes (see largest_zero_). By adding to_smallest_, encode_words() turns
    // them into the words -0x8000 to -0x8000 + num_subnormal - 1.
    const int num_subnormal = ((smallest_normal_ - largest_zero_) << 7) - 1;
    return has_word_below(smallest_, num_subnormal - 0x8000) || has_negative_byte(all_codes_);
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kDropped = 7 - kLayout.mantissa_bits;

  [[gnu::always_inline]] Bytes encode_words(Bytes elements) {
    const Bytes magnitudes = bit_and(elements, all_words(0x7fff));
    smallest_ = smaller_word(smallest_, add_words(magnitudes, to_smallest_));
    const Bytes odd = bit_and(shift_words_right<kDropped>(magnitudes), all_words(1));
    return shift_words_right<kDropped>(add_words(larger_word(magnitudes, below_normal_), add_words(odd, rounding_)));
  }

  // Biased exponents. The bfloat16 with exponent largest_zero_ and mantissa 0 is the largest magnitude whose code is
  // zero. Magnitudes above it, with exponents below smallest_normal_, are called subnormal here: they have subnormal
  // codes, or round up to the smallest normal code.
  const int smallest_normal_, largest_zero_ = smallest_normal_ - kLayout.mantissa_bits - 1;
  // The magnitude with exponent smallest_normal_ - 1 and mantissa 0. encode_words() raises smaller magnitudes to it.
  // rounding_ subtracts it, so that the exponent smallest_normal_ becomes the exponent 1 of the code.
  const Bytes below_normal_ = all_words((smallest_normal_ - 1) << 7);
  const Bytes rounding_ = all_words((1 << (kDropped - 1)) - 1 - ((smallest_normal_ - 1) << 7));
  // Adding this word to a magnitude turns the subnormal magnitudes into the smallest words: -0x8000, -0x7fff, and so
  // on. For magnitudes whose code is zero the sum wraps around to a positive word.
  const Bytes to_smallest_ = all_words(-0x8000 - (largest_zero_ << 7) - 1);
  Bytes smallest_ = all_words(0x7fff);  // the smallest sum of a magnitude and to_smallest_
  Bytes all_codes_ = all_words(0);      // the bitwise or of all codes
};

// Returns false if NormalEncoder gives an element a wrong code, which happens in few tiles, or if it does not take the
// scale or the count. Then some codes are wrong or not written.
template <Element kElement>
[[gnu::always_inline]] inline bool encode_normal(uint8_t* to, const BFloat16* from, int64_t count, float scale) {
  constexpr int64_t kStep = sizeof(Bytes);
  if (count % kStep != 0 || !NormalEncoder<kElement>::takes(scale)) return false;
  NormalEncoder<kElement> encoder(scale);
  for (int64_t i = 0; i < count; i += kStep) store(to + i, encoder.encode(from + i));
  return !encoder.has_wrong_codes();
}

#endif

// Quantises the tiles that the inlined code of quantise_tile() does not handle.
template <Element kElement, bool kIsPowerOfTwo, FloatElement Input>
[[gnu::noinline]] void quantise_any_tile(uint8_t* to, const Input* from, int64_t count, float scale) {
#ifdef MULTIKV_HAS_SIMD
  // The reciprocal of a power of two is exact, so that multiplying by it needs no correction.
  constexpr int kSteps = kIsPowerOfTwo ? 0 : 1;
  if (encoder_takes(scale)) {
    return convert_with(Encoder<kElement, Input, kSteps>(scale), to, from, count, Stores::kOrdinary);
  }
#endif
  quantise<kElement>(to, from, count, scale, Stores::kOrdinary);
}

// to[i] = fp8(from[i] / scale).
template <Element kElement, bool kIsPowerOfTwo, FloatElement Input>
[[gnu::always_inline]] inline void quantise_tile(uint8_t* to, const Input* from, int64_t count, float scale) {
#ifdef MULTIKV_HAS_SIMD
  if constexpr (kIsPowerOfTwo && std::same_as<Input, BFloat16>) {
    if (encode_normal<kElement>(to, from, count, scale)) return;
  }
  if constexpr (!kIsPowerOfTwo && std::same_as<Input, BFloat16>) {
    // This loop is inlined, because a call would cost a tenth of the time that a tile takes.
    if (count % sizeof(Bytes) == 0 && encoder_takes(scale)) {
      const Encoder<kElement, Input, 1> encode(scale);
      for (int64_t i = 0; i < count; i += sizeof(Bytes)) store(to + i, encode(from + i).data[0]);
      return;
    }
  }
#endif
  quantise_any_tile<kElement, kIsPowerOfTwo>(to, from, count, scale);
}

}  // namespace
}  // namespace multikv::cpu
