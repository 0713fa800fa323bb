// Tiles: e4m3 codes that share a scale, which comes from the largest of them.
#pragma once

#include "core/tile_scale.h"
#include "cpu/isa/codec/quantise.h"

namespace multikv::cpu {
namespace {

inline int32_t bits_of(float x) { return std::bit_cast<int32_t>(x); }
inline int16_t bits_of(Half x) { return static_cast<int16_t>(x.bits); }
inline int16_t bits_of(BFloat16 x) { return static_cast<int16_t>(x.bits); }

// Magnitudes are ordered as their bits are, NaN above infinity. Where that is found it counts for nothing, and all is
// done again.
template <auto kInfinity, bool kHasNaN = false, class Input>
auto largest_magnitude(const Input* from, int64_t count) {
  using Bits = decltype(bits_of(Input{}));
  constexpr auto kMagnitude = static_cast<Bits>(sizeof(Bits) == 2 ? 0x7fff : 0x7fffffff);
  Bits largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    auto magnitude = static_cast<Bits>(bits_of(from[i]) & kMagnitude);
    if (kHasNaN && magnitude > kInfinity) magnitude = 0;
    largest = magnitude > largest ? magnitude : largest;
  }
  if constexpr (!kHasNaN) {
    if (largest > kInfinity) return largest_magnitude<kInfinity, true>(from, count);
  }
  return largest;
}

#ifdef MULTIKV_HAS_LANES

#if defined(__AVX512BW__)
inline __m128i larger_words_of_16_bytes(Bytes x) {
  const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  return _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
inline bool has_word_below(Bytes x, int limit) { return _mm512_cmplt_epi16_mask(x, all_words(limit)) != 0; }
inline bool has_negative_byte(Bytes x) { return _mm512_movepi8_mask(x) != 0; }
template <int kBits> Bytes shift_words_right(Bytes x) { return _mm512_srli_epi16(x, kBits); }
#else
inline __m128i larger_words_of_16_bytes(Bytes x) {
  return _mm_max_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
inline bool has_word_below(Bytes x, int limit) {
  return _mm256_movemask_epi8(_mm256_cmpgt_epi16(all_words(limit), x)) != 0;
}
inline bool has_negative_byte(Bytes x) { return _mm256_movemask_epi8(x) != 0; }
template <int kBits> Bytes shift_words_right(Bytes x) { return _mm256_srli_epi16(x, kBits); }
#endif

// Of words that are not negative. There is an instruction for the smallest of eight.
inline int32_t largest_word(Bytes x) {
  const __m128i ones = _mm_set1_epi16(-1);
  return _mm_extract_epi16(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(larger_words_of_16_bytes(x), ones)), ones), 0);
}

#endif

template <int32_t kInfinity, class Input>
[[gnu::always_inline]] inline Input amax_of_words(const Input* from, int64_t count) {
#ifdef MULTIKV_HAS_LANES
  constexpr int64_t kStep = sizeof(Bytes) / 2;
  if (count % kStep == 0) {
    Bytes largest = all_words(0);
    for (int64_t i = 0; i < count; i += kStep)
      largest = larger_word(largest, bit_and(load(from + i), all_words(0x7fff)));
    const int32_t magnitude = largest_word(largest);
    if (magnitude <= kInfinity) return {static_cast<uint16_t>(magnitude)};
  }
#endif
  return {static_cast<uint16_t>(largest_magnitude<kInfinity>(from, count))};
}

[[gnu::always_inline]] inline float tile_amax(const float* from, int64_t count) {
  return std::bit_cast<float>(largest_magnitude<0x7f800000>(from, count));
}
[[gnu::always_inline]] inline float tile_amax(const Half* from, int64_t count) {
  return widen(amax_of_words<0x7c00>(from, count));
}
[[gnu::always_inline]] inline float tile_amax(const BFloat16* from, int64_t count) {
  return widen(amax_of_words<0x7f80>(from, count));
}

#ifdef MULTIKV_HAS_LANES

// to[i] = fp8(from[i] / scale) where scale is a power of two that was made for these numbers, so that no quotient is
// past the largest code. On words of 16 bits, where the division is a difference of exponents. False, and the codes are
// not those, if a number is not finite or its code would be subnormal; few tiles have one.
template <CacheFormat kFormat>
[[gnu::always_inline]] inline bool encode_normal(uint8_t* to, const BFloat16* from, int64_t count, float scale) {
  constexpr Fp8Layout kLayout = layout_of(kFormat);
  constexpr int64_t kStep = sizeof(Bytes);
  constexpr int kDropped = 7 - kLayout.mantissa_bits;
  if (count % kStep != 0 || scale > 0x1p100f) return false;  // up to there NaN gets a code past 255
  // Exponents, and with 7 bits of mantissa the numbers, that become the smallest normal code and, still, zero.
  const int smallest_normal = static_cast<int>(std::bit_cast<uint32_t>(scale) >> 23) + 1 - kLayout.bias;
  const int largest_zero = smallest_normal - kLayout.mantissa_bits - 1;
  const Bytes below_normal = all_words((smallest_normal - 1) << 7);
  const Bytes rounding = all_words((1 << (kDropped - 1)) - 1 - ((smallest_normal - 1) << 7));
  // Numbers between the two become the smallest of all words.
  const Bytes to_smallest = all_words(-0x8000 - (largest_zero << 7) - 1);
  const int num_between = ((smallest_normal - largest_zero) << 7) - 1;
  Bytes smallest = all_words(0x7fff), all_codes = all_words(0);
  const auto encode_words = [&] [[gnu::always_inline]] (Bytes numbers) {
    const Bytes magnitudes = bit_and(numbers, all_words(0x7fff));
    smallest = smaller_word(smallest, add_words(magnitudes, to_smallest));
    const Bytes odd = bit_and(shift_words_right<kDropped>(magnitudes), all_words(1));
    return shift_words_right<kDropped>(add_words(larger_word(magnitudes, below_normal), add_words(odd, rounding)));
  };
  for (int64_t i = 0; i < count; i += kStep) {
    const Bytes a = load(from + i), b = load(from + i + kStep / 2);
    const Bytes codes = saturate_words(encode_words(a), encode_words(b));
    Bytes signs = bit_and(sign_bytes(a, b), all_words(0x8080));
    if constexpr (kLayout.fnuz) signs = keep_if_nonzero_byte(codes, signs);
    all_codes = bit_or(all_codes, codes);
    store(to + i, in_order(bit_or(codes, signs)));
  }
  return !has_word_below(smallest, num_between - 0x8000) && !has_negative_byte(all_codes);
}

#endif

template <CacheFormat kFormat, bool kIsPowerOfTwo, class Input>
[[gnu::noinline]] void quantise_any_tile(uint8_t* to, const Input* from, int64_t count, float scale) {
#ifdef MULTIKV_HAS_LANES
  // Division by a power of two is exact as a multiplication.
  constexpr int kSteps = kIsPowerOfTwo ? 0 : sizeof(Input) / 2;
  if (encoder_takes(scale)) {
    return convert_with(Encoder<kFormat, Input, kSteps>(scale), to, from, count, Stores::kOrdinary);
  }
#endif
  quantise<kFormat>(to, from, count, scale, Stores::kOrdinary);
}

// to[i] = fp8(from[i] / scale).
template <CacheFormat kFormat, bool kIsPowerOfTwo, class Input>
[[gnu::always_inline]] inline void quantise_tile(uint8_t* to, const Input* from, int64_t count, float scale) {
#ifdef MULTIKV_HAS_LANES
  if constexpr (kIsPowerOfTwo && std::is_same_v<Input, BFloat16>) {
    if (encode_normal<kFormat>(to, from, count, scale)) return;
  }
#endif
#ifdef MULTIKV_HAS_LANES
  if constexpr (!kIsPowerOfTwo && std::is_same_v<Input, BFloat16>) {  // here: a call would cost a tenth of it
    if (count % sizeof(Bytes) == 0 && encoder_takes(scale)) {
      const Encoder<kFormat, Input, 1> encode(scale);
      for (int64_t i = 0; i < count; i += sizeof(Bytes)) store(to + i, encode(from + i).data[0]);
      return;
    }
  }
#endif
  quantise_any_tile<kFormat, kIsPowerOfTwo>(to, from, count, scale);
}

}  // namespace
}  // namespace multikv::cpu
