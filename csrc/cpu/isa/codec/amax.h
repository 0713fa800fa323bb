// The largest magnitude of a tile's elements.
#pragma once

#include "cpu/isa/codec/elements.h"
#include "cpu/isa/simd/ops.h"

namespace multikv::cpu {
namespace {

inline int32_t bits_of(float x) { return std::bit_cast<int32_t>(x); }
inline int16_t bits_of(Float16 x) { return static_cast<int16_t>(x.bits); }
inline int16_t bits_of(BFloat16 x) { return static_cast<int16_t>(x.bits); }

// Returns the bits of the largest magnitude that is not NaN; 0 if all elements are NaN. Magnitudes compare like their
// bits as integers, and every NaN is above infinity. So the first loop does not test for NaN, and only if its result is
// a NaN, a second loop (kHasNaN) skips them.
template <auto kInfinity, bool kHasNaN = false, FloatElement Input>
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

#ifdef MULTIKV_HAS_SIMD

// Word i of the result is the largest of the words i of all segments of x.
#if defined(__AVX512BW__)
inline __m128i larger_words_of_segments(Bytes x) {
  const __m256i half = _mm256_max_epi16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
  return _mm_max_epi16(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}
#else
inline __m128i larger_words_of_segments(Bytes x) {
  return _mm_max_epi16(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
}
#endif

// Returns the largest word of x, whose words are not negative. x86 has a horizontal minimum of eight unsigned words
// (phminposuw), but no maximum, so the words are complemented before and after.
inline int32_t largest_word(Bytes x) {
  const __m128i ones = _mm_set1_epi16(-1);
  return _mm_extract_epi16(_mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(larger_words_of_segments(x), ones)), ones), 0);
}

#endif

template <int32_t kInfinity, FloatOf16Bits Input>
[[gnu::always_inline]] inline Input amax_of_words(const Input* from, int64_t count) {
#ifdef MULTIKV_HAS_SIMD
  constexpr int64_t kStep = sizeof(Bytes) / 2;
  if (count % kStep == 0) {
    Bytes largest = all_words(0);
    for (int64_t i = 0; i < count; i += kStep) {
      largest = larger_word(largest, bit_and(load(from + i), all_words(0x7fff)));
    }
    const int32_t magnitude = largest_word(largest);
    if (magnitude <= kInfinity) return {static_cast<uint16_t>(magnitude)};
  }
#endif
  return {static_cast<uint16_t>(largest_magnitude<kInfinity>(from, count))};
}

[[gnu::always_inline]] inline float tile_amax(const float* from, int64_t count) {
  return std::bit_cast<float>(largest_magnitude<0x7f800000>(from, count));
}
[[gnu::always_inline]] inline float tile_amax(const Float16* from, int64_t count) {
  return widen(amax_of_words<0x7c00>(from, count));
}
[[gnu::always_inline]] inline float tile_amax(const BFloat16* from, int64_t count) {
  return widen(amax_of_words<0x7f80>(from, count));
}

}  // namespace
}  // namespace multikv::cpu
