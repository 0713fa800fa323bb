// Floats to fp8 in vectors: what encode_fp8 (../../fp8.h) gives for x / scale, in fewer steps.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/codec/numbers.h"
#include "cpu/isa/codec/rounder.h"
#include "cpu/isa/simd/lanes.h"

#ifdef MULTIKV_HAS_LANES

namespace multikv::cpu {
namespace {

// Whether x * (1 / scale), rounded twice, gives the same codes as x / scale for every x of so many significant bits.
//
// Both are within 2^-22 of the exact quotient, so they can only differ next to the middle between two fp8 numbers (or
// half of the smallest), which is a number of at most 5 bits. Near this number times the scale there is at most one
// x. For each of the 16 that differ by more than a power of two, this x is tried. The quotient is that of Quotient
// (../../quotient.h).
template <int kSignificantBits>
inline bool estimate_suffices(float scale) {
  const auto significand = static_cast<int32_t>((std::bit_cast<uint32_t>(scale) & 0x7fffff) | 0x800000);
  const auto divisor = static_cast<float>(significand);
  const float reciprocal = 1.0f / divisor;
  int32_t num_different = 0;
  for (int32_t middle = 16; middle < 32; ++middle) {
    const int32_t product = middle * significand;  // from 2^27 to 2^29
    const int32_t spacing = 1 << (28 - kSignificantBits) << (product >> 28);
    const auto x = static_cast<float>((product + spacing / 2) & -spacing);
    const auto m = static_cast<float>(middle);
    const float estimate = x * reciprocal;
    const float quotient = __builtin_fmaf(__builtin_fmaf(-estimate, divisor, x), reciprocal, estimate);
    num_different += (quotient < m) != (estimate < m) || (quotient > m) != (estimate > m);
  }
  return num_different == 0;
}

// Codes of sizeof(Bytes) numbers at a time.
//
// Division: the estimate x * (1 / scale), then as many corrective steps as Quotient (../../quotient.h) takes, or none
// where estimate_suffices. Numbers are brought below the largest that matters first, so that nothing overflows; what
// underflows is rounded to zero anyway.
template <CacheFormat kFormat, class Input, int kSteps>
class Encoder {
 public:
  explicit Encoder(float scale)
      : limit_(all(std::bit_cast<float>(kLayout.max_bits) * scale)), divisor_(all(scale / Round::kUnit)),
        reciprocal_(all(Round::kUnit / scale)) {}

  [[gnu::always_inline]] Vectors<1> operator()(const Input* from) const {
    const Words a = encode_words(from), b = encode_words(from + sizeof(Bytes) / 2);
    return {{in_order(with_signs(saturate_words(a.codes, b.codes), sign_bytes(a.numbers, b.numbers)))}};
  }

 private:
  struct Words {
    Bytes codes, numbers;  // 16 bits each; of the numbers only signs count
  };
  static constexpr Fp8Layout kLayout = layout_of(kFormat);
  using Round = Rounder<kFormat>;

  [[gnu::always_inline]] Words encode_words(const BFloat16* from) const {
    const Bytes numbers = load(from);
    const Bytes magnitudes = bit_and(numbers, all_words(0x7fff));
    const Bytes even = shift_ints_left<16>(magnitudes);
    const Bytes odd = bit_and(magnitudes, all_ints(0x7fff0000));
    return {interleave_low_words(encode_ints(even), encode_ints(odd)), numbers};
  }
  [[gnu::always_inline]] Words encode_words(const Half* from) const {
    const Bytes numbers = load(from);
    Bytes magnitudes = bit_and(numbers, all_words(0x7fff));
    if constexpr (!Round::kTakesAnyNan) magnitudes = smaller_word(magnitudes, all_words(0x7c01));
    return {low_words(encode_ints(as_ints(floats_of_low_halves(magnitudes))),
                      encode_ints(as_ints(floats_of_high_halves(magnitudes)))),
            numbers};
  }
  [[gnu::always_inline]] Words encode_words(const float* from) const {
    const Bytes a = load(from), b = load(from + sizeof(Bytes) / 4);
    return {low_words(encode_ints(magnitude(a)), encode_ints(magnitude(b))), high_words(a, b)};
  }
  static Bytes magnitude(Bytes x) {
    x = bit_and(x, all_ints(0x7fffffff));
    return Round::kTakesAnyNan ? x : smaller_int(x, all_ints(0x7f800001));
  }

  [[gnu::always_inline]] Bytes encode_ints(Bytes magnitudes) const {
    const Floats x = smaller_or_second(limit_, as_floats(magnitudes));
    Floats quotient = product(x, reciprocal_);
    if constexpr (kSteps >= 1) quotient = fma(negated_fma(quotient, divisor_, x), reciprocal_, quotient);
    if constexpr (kSteps >= 2) quotient = fma(negated_fma(quotient, divisor_, x), reciprocal_, quotient);
    return round_(quotient);
  }

  // Codes, 0xff for NaN, with the signs of numbers.
  static Bytes with_signs(Bytes codes, Bytes numbers) {
    const Bytes sign_bit = all_words(0x8080);
    if constexpr (kLayout.fnuz) {
      const Bytes signs = bit_and(keep_if_nonzero_byte(codes, numbers), sign_bit);
      return bit_or(replace_negative_bytes(codes, 0x80), signs);
    }
    return bit_xor(codes, bit_and(bit_or(codes, numbers), sign_bit));
  }

  Round round_;
  Floats limit_, divisor_, reciprocal_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
