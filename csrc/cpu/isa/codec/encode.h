// Encodes floats as fp8 codes with vector operations: the codes of encode_fp8(x / scale) (core/fp8.h), in fewer steps.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/codec/elements.h"
#include "cpu/isa/codec/rounder.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// Returns true for scales with which no step of an Encoder overflows, and steps underflow only for elements whose code
// is zero. Returns false for NaN.
inline bool encoder_takes(float scale) { return scale >= 0x1p-40f && scale <= 0x1p40f; }

// Returns true if the estimate x * (1 / scale), in which both operations round, has the same code as x / scale for
// every x with kBits significant bits.
//
// The relative errors of the estimate and of the quotient are below 2^-22. So the two codes can differ only where x /
// scale is next to a midpoint: the middle between two neighbouring fp8 numbers, or between zero and the smallest. At
// each midpoint, the codes can differ for at most one x with kBits significant bits: the x nearest to the product of
// the midpoint and the scale. A midpoint has at most 5 significant bits. Multiplying a midpoint or a scale by a power
// of two changes exponents only. So this function tries the midpoints 16 to 31 with the significand of the scale, each
// with one x. The quotient is computed with one corrective step, as Encoder does.
template <int kBits>
inline bool estimate_suffices(float scale) {
  const auto significand = static_cast<int32_t>((std::bit_cast<uint32_t>(scale) & 0x7fffff) | 0x800000);
  const auto divisor = static_cast<float>(significand);
  const float reciprocal = 1.0f / divisor;
  int32_t num_different = 0;
  for (int32_t midpoint = 16; midpoint < 32; ++midpoint) {
    const int32_t product = midpoint * significand;  // from 2^27 to 2^29 - 1
    // x is the product rounded to kBits significant bits, i.e. to a multiple of `spacing`.
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
// Each element is divided by the scale: an estimate x * (1 / scale), followed by kSteps corrective steps as in
// core/quotient.h. One step suffices; none is needed where estimate_suffices() returns true, or the scale is a power of
// two. Magnitudes are clamped to the largest fp8 number times the scale first, so that nothing overflows. An underflow
// happens only for elements whose code is zero.
template <Element kElement, FloatElement Input, int kSteps>
  requires(is_fp8(kElement) && (kSteps == 0 || kSteps == 1))
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
  // Vectors of 16-bit words: the codes of the magnitudes, and the upper 16 bits of the elements, which hold the signs.
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
    // Turns every NaN into the NaN with the smallest payload, as Rounder requires.
    if constexpr (!Round::kTakesAnyNan) magnitudes = smaller_word(magnitudes, all_words(0x7c01));
    return {low_words(encode_ints(as_ints(widen_low_float16s(magnitudes))),
                      encode_ints(as_ints(widen_high_float16s(magnitudes)))),
            elements};
  }
  [[gnu::always_inline]] Words encode_words(const float* from) const {
    const Bytes a = load(from), b = load(from + sizeof(Bytes) / 4);
    return {low_words(encode_ints(magnitude(a)), encode_ints(magnitude(b))), high_words(a, b)};
  }
  // Turns every NaN into the NaN with the smallest payload, if Rounder requires it.
  static Bytes magnitude(Bytes x) {
    x = bit_and(x, all_ints(0x7fffffff));
    return Round::kTakesAnyNan ? x : smaller_int(x, all_ints(0x7f800001));
  }

  // Returns the codes of float32 magnitudes in the low words of the integers.
  [[gnu::always_inline]] Bytes encode_ints(Bytes magnitudes) const {
    const Floats x = smaller_or_second(limit_, as_floats(magnitudes));
    Floats quotient = product(x, reciprocal_);
    if constexpr (kSteps == 1) quotient = fma(negated_fma(quotient, divisor_, x), reciprocal_, quotient);
    return round_(quotient);
  }

  // Adds the signs of the elements to the codes of their magnitudes. The code of NaN is 0xff here. In the fnuz formats
  // it becomes 0x80, and a code of zero gets no sign, because there is no -0. In the other formats it becomes 0x7f.
  static Bytes with_signs(Bytes codes, Bytes elements) {
    const Bytes sign_bit = all_words(0x8080);
    if constexpr (kLayout.fnuz) {
      const Bytes signs = bit_and(keep_if_nonzero_byte(codes, elements), sign_bit);
      return bit_or(replace_negative_bytes(codes, 0x80), signs);
    }
    // 0xff becomes 0x7f for either sign, because the mask contains the sign bit of the code itself.
    return bit_xor(codes, bit_and(bit_or(codes, elements), sign_bit));
  }

  Round round_;
  Floats limit_, divisor_, reciprocal_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
