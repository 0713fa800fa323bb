// The operations of ops.h with AVX2, FMA and F16C.
#pragma once

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

using Floats = __m256;

inline Floats all(float x) { return _mm256_set1_ps(x); }
inline Bytes all_words(int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); }
inline Bytes all_ints(int x) { return _mm256_set1_epi32(x); }
inline Bytes as_ints(Floats x) { return _mm256_castps_si256(x); }
inline Floats as_floats(Bytes x) { return _mm256_castsi256_ps(x); }

inline Floats product(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
inline Floats negated_fma(Floats a, Floats b, Floats c) { return _mm256_fnmadd_ps(a, b, c); }
inline Floats smaller_or_second(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats sum(Floats a, Floats b) { return _mm256_add_ps(a, b); }
inline Floats difference(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
inline Floats quotient(Floats a, Floats b) { return _mm256_div_ps(a, b); }
inline Floats square_root(Floats x) { return _mm256_sqrt_ps(x); }
inline Floats sums_of_neighbours(Floats a, Floats b) {
  return _mm256_add_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd));
}
inline Floats sums_of_segments(Floats a, Floats b) {
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline Bytes bit_and(Bytes a, Bytes b) { return _mm256_and_si256(a, b); }
inline Bytes bit_or(Bytes a, Bytes b) { return _mm256_or_si256(a, b); }
inline Bytes bit_xor(Bytes a, Bytes b) { return _mm256_xor_si256(a, b); }
inline Bytes add_ints(Bytes a, Bytes b) { return _mm256_add_epi32(a, b); }
inline Bytes subtract_ints(Bytes a, Bytes b) { return _mm256_sub_epi32(a, b); }
inline Bytes add_words(Bytes a, Bytes b) { return _mm256_add_epi16(a, b); }
inline Bytes larger_int(Bytes a, Bytes b) { return _mm256_max_epi32(a, b); }
inline Bytes smaller_int(Bytes a, Bytes b) { return _mm256_min_epi32(a, b); }
inline Bytes larger_word(Bytes a, Bytes b) { return _mm256_max_epi16(a, b); }
inline Bytes smaller_word(Bytes a, Bytes b) { return _mm256_min_epi16(a, b); }
inline Bytes larger_unsigned_word(Bytes a, Bytes b) { return _mm256_max_epu16(a, b); }
inline bool is_any_word_above(Bytes x, int limit) {
  const Bytes excess = _mm256_subs_epu16(x, all_words(limit));
  return _mm256_testz_si256(excess, excess) == 0;
}
template <int kBits> Bytes shift_ints_left(Bytes x) { return _mm256_slli_epi32(x, kBits); }
template <int kBits> Bytes shift_ints_right(Bytes x) { return _mm256_srli_epi32(x, kBits); }
template <int kBits> Bytes shift_words_left(Bytes x) { return _mm256_slli_epi16(x, kBits); }

inline Bytes words_of_signed_bytes(const uint8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Floats widen_low_float16s(Bytes x) { return _mm256_cvtph_ps(_mm256_castsi256_si128(x)); }
inline Floats widen_high_float16s(Bytes x) { return _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)); }
inline Bytes narrow_to_float16s(Floats low, Floats high) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm256_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT)),
                                 _mm256_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT), 1);
}

inline Bytes interleave_low_words(Bytes even, Bytes odd) {
  return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}
inline Bytes high_words(Bytes a, Bytes b) {
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)), 0xd8);
}
inline Bytes low_words(Bytes a, Bytes b) {
  const __m256i zero = _mm256_setzero_si256();
  return _mm256_permute4x64_epi64(
      _mm256_packus_epi32(_mm256_blend_epi16(a, zero, 0xaa), _mm256_blend_epi16(b, zero, 0xaa)), 0xd8);
}

inline Bytes saturate_words(Bytes a, Bytes b) { return _mm256_packus_epi16(a, b); }
inline Bytes sign_bytes(Bytes a, Bytes b) { return _mm256_packs_epi16(a, b); }
inline Bytes in_order(Bytes x) { return _mm256_permute4x64_epi64(x, 0xd8); }

inline Bytes keep_if_nonzero_byte(Bytes condition, Bytes x) {
  return _mm256_andnot_si256(_mm256_cmpeq_epi8(condition, _mm256_setzero_si256()), x);
}
inline Bytes replace_negative_bytes(Bytes x, int with) {
  return _mm256_blendv_epi8(x, _mm256_set1_epi8(static_cast<char>(with)), x);
}
inline Bytes replace_equal_words(Bytes x, int what, int with) {
  return _mm256_blendv_epi8(x, all_words(with), _mm256_cmpeq_epi16(x, all_words(what)));
}

inline Bytes all_bytes(int x) { return _mm256_set1_epi8(static_cast<char>(x)); }
inline Bytes smaller_byte(Bytes a, Bytes b) { return _mm256_min_epu8(a, b); }
inline Bytes look_up(Bytes table, Bytes indices) { return _mm256_shuffle_epi8(table, indices); }
inline Bytes low_pairs(Bytes a, Bytes b) { return _mm256_unpacklo_epi8(a, b); }
inline Bytes high_pairs(Bytes a, Bytes b) { return _mm256_unpackhi_epi8(a, b); }
template <int kBits> Bytes shift_words_right_signed(Bytes x) { return _mm256_srai_epi16(x, kBits); }
inline Bytes for_pairs(Bytes x) { return _mm256_permute4x64_epi64(x, 0xd8); }

using ByteMask = __m256i;  // stored inverted: a byte is 0xff where the mask is not set, and 0 where it is set
inline ByteMask differ(Bytes a, Bytes b) { return _mm256_cmpeq_epi8(a, b); }
inline Bytes else_zeros(ByteMask mask, Bytes x) { return _mm256_andnot_si256(mask, x); }
inline Bytes else_ones(ByteMask mask, Bytes x) { return _mm256_or_si256(mask, x); }

struct Tables {
  Bytes low, high;
};
template <VectorMap IntsOf>
inline Tables tables_of_high_words(const IntsOf& ints_of) {
  const Bytes words = high_words(ints_of(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0)),
                                 ints_of(_mm256_set_epi32(15, 14, 13, 12, 11, 10, 9, 8)));
  const Bytes low = _mm256_and_si256(words, _mm256_set1_epi16(0xff)), high = _mm256_srli_epi16(words, 8);
  const Bytes bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(low, high), 0xd8);
  return {_mm256_permute4x64_epi64(bytes, 0x44), _mm256_permute4x64_epi64(bytes, 0xee)};
}

inline Floats floats_of_ints(Bytes x) { return _mm256_cvtepi32_ps(x); }

}  // namespace
}  // namespace multikv::cpu
