// Floats to fp8 codes in vectors: encode_fp8(x / scale) (core/fp8.h) in fewer steps.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/codec/elements.h"
#include "cpu/isa/codec/rounder.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// Scales with which no step of an Encoder underflows or overflows. NaN is not one of them.
inline bool encoder_takes(float scale) { return scale >= 0x1p-40f && scale <= 0x1p40f; }

// Whether x * (1 / scale), rounded twice, gives the same codes as x / scale for every x with kBits significant bits.
//
// The estimate and the quotient are both within 2^-22 of the exact quotient, so their codes can differ only next to the
// midpoint between two fp8 numbers, or next to half of the smallest. Each midpoint has at most 5 significant bits, and
// at most one x is near the product of a midpoint and the scale. Midpoints that differ by a power of two behave alike,
// which leaves 16 of them to try. The quotient is computed as in core/quotient.h.
template <int kBits>
inline bool estimate_suffices(float scale) {
  const auto significand = static_cast<int32_t>((std::bit_cast<uint32_t>(scale) & 0x7fffff) | 0x800000);
  const auto divisor = static_cast<float>(significand);
  const float reciprocal = 1.0f / divisor;
  int32_t num_different = 0;
  for (int32_t midpoint = 16; midpoint < 32; ++midpoint) {
    const int32_t product = midpoint * significand;  // 2^27 .. 2^29
    const int32_t spacing = 1 << (28 - kBits) << (product >> 28);
    const auto x = static_cast<float>((product + spacing / 2) & -spacing);
    const auto m = static_cast<float>(midpoint);
    const float estimate = x * reciprocal;
    const float quotient = __builtin_fmaf(__builtin_fmaf(-estimate, divisor, x), reciprocal, estimate);
    num_different += (quotient < m) != (estimate < m) || (quotient > m) != (estimate > m);
  }
  return num_different == 0;
}

// Encodes sizeof(Bytes) elements at a time.
//
// Division takes the estimate x * (1 / scale) and kSteps corrections: as many as Quotient (core/quotient.h), or none
// where estimate_suffices(). Magnitudes are clamped first, so that nothing overflows; what underflows would be rounded
// to zero anyway.
template <Element kElement, FloatElement Input, int kSteps>
  requires(is_fp8(kElement))
class Encoder {
 public:
  explicit Encoder(float scale)
      : limit_(all(std::bit_cast<float>(kLayout.max_bits) * scale)), divisor_(all(scale / Round::kUnit)),
        reciprocal_(all(Round::kUnit / scale)) {}

  [[gnu::always_inline]] Vectors<1> operator()(const Input* from) const {
    const Words a = encode_words(from), b = encode_words(from + sizeof(Bytes) / 2);
    return {{in_order(with_signs(saturate_words(a.codes, b.codes), sign_bytes(a.elements, b.elements)))}};
  }

 private:
  // Words: codes of magnitudes, and the high words of the elements, of which only the signs are used.
  struct Words {
    Bytes codes, elements;
  };
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  using Round = Rounder<kElement>;

  [[gnu::always_inline]] Words encode_words(const BFloat16* from) const {
    const Bytes elements = load(from);
    const Bytes magnitudes = bit_and(elements, all_words(0x7fff));
    const Bytes even = shift_ints_left<16>(magnitudes);
    const Bytes odd = bit_and(magnitudes, all_ints(0x7fff0000));
    return {interleave_low_words(encode_ints(even), encode_ints(odd)), elements};
  }
  [[gnu::always_inline]] Words encode_words(const Float16* from) const {
    const Bytes elements = load(from);
    Bytes magnitudes = bit_and(elements, all_words(0x7fff));
    if constexpr (!Round::kTakesAnyNan) magnitudes = smaller_word(magnitudes, all_words(0x7c01));
    return {low_words(encode_ints(as_ints(widen_low_float16s(magnitudes))),
                      encode_ints(as_ints(widen_high_float16s(magnitudes)))),
            elements};
  }
  [[gnu::always_inline]] Words encode_words(const float* from) const {
    const Bytes a = load(from), b = load(from + sizeof(Bytes) / 4);
    return {low_words(encode_ints(magnitude(a)), encode_ints(magnitude(b))), high_words(a, b)};
  }
  static Bytes magnitude(Bytes x) {
    x = bit_and(x, all_ints(0x7fffffff));
    return Round::kTakesAnyNan ? x : smaller_int(x, all_ints(0x7f800001));
  }

  // Codes of float32 magnitudes, in the low words.
  [[gnu::always_inline]] Bytes encode_ints(Bytes magnitudes) const {
    const Floats x = smaller_or_second(limit_, as_floats(magnitudes));
    Floats quotient = product(x, reciprocal_);
    if constexpr (kSteps >= 1) quotient = fma(negated_fma(quotient, divisor_, x), reciprocal_, quotient);
    if constexpr (kSteps >= 2) quotient = fma(negated_fma(quotient, divisor_, x), reciprocal_, quotient);
    return round_(quotient);
  }

  // The codes of magnitudes, 0xff for NaN, get the signs of the elements.
  static Bytes with_signs(Bytes codes, Bytes elements) {
    const Bytes sign_bit = all_words(0x8080);
    if constexpr (kLayout.fnuz) {
      const Bytes signs = bit_and(keep_if_nonzero_byte(codes, elements), sign_bit);
      return bit_or(replace_negative_bytes(codes, 0x80), signs);
    }
    // The sign bit of 0xff flips to give 0x7f, whatever the element's sign is.
    return bit_xor(codes, bit_and(bit_or(codes, elements), sign_bit));
  }

  Round round_;
  Floats limit_, divisor_, reciprocal_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
