// What conversions are written in: the same operations on vectors of 512 bits (AVX-512) and of 256 bits (AVX2).
// Elsewhere there are no lanes, and loops that the compiler turns into vectors do the work.
#pragma once

#include "cpu/isa/simd/vec.h"

#if defined(__AVX512BW__) || defined(__AVX2__)
#define MULTIKV_HAS_LANES

namespace multikv::cpu {
namespace {

template <int kCount>
struct Vectors {
  Bytes data[kCount];
};

// A vector of Bytes is also one of 16-bit words, or of 32-bit integers. "Halves" of a vector: float16 numbers in the
// order of memory, the low half of them and the high one.
#if defined(__AVX512BW__)

using Floats = __m512;

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Bytes all_words(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
inline Bytes all_ints(int x) { return _mm512_set1_epi32(x); }
inline Bytes as_ints(Floats x) { return _mm512_castps_si512(x); }
inline Floats as_floats(Bytes x) { return _mm512_castsi512_ps(x); }

inline Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats negated_fma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats smaller_or_second(Floats a, Floats b) { return _mm512_min_ps(a, b); }  // b if one of them is NaN

inline Bytes bit_and(Bytes a, Bytes b) { return _mm512_and_si512(a, b); }
inline Bytes bit_or(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
inline Bytes bit_xor(Bytes a, Bytes b) { return _mm512_xor_si512(a, b); }
inline Bytes add_ints(Bytes a, Bytes b) { return _mm512_add_epi32(a, b); }
inline Bytes subtract_ints(Bytes a, Bytes b) { return _mm512_sub_epi32(a, b); }
inline Bytes add_words(Bytes a, Bytes b) { return _mm512_add_epi16(a, b); }
inline Bytes larger_int(Bytes a, Bytes b) { return _mm512_max_epi32(a, b); }
inline Bytes smaller_int(Bytes a, Bytes b) { return _mm512_min_epi32(a, b); }
inline Bytes larger_word(Bytes a, Bytes b) { return _mm512_max_epi16(a, b); }
inline Bytes smaller_word(Bytes a, Bytes b) { return _mm512_min_epi16(a, b); }
template <int kBits> Bytes shift_ints_left(Bytes x) { return _mm512_slli_epi32(x, kBits); }
template <int kBits> Bytes shift_ints_right(Bytes x) { return _mm512_srli_epi32(x, kBits); }
template <int kBits> Bytes shift_words_left(Bytes x) { return _mm512_slli_epi16(x, kBits); }

inline Bytes words_of_signed_bytes(const uint8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Floats floats_of_low_halves(Bytes x) { return _mm512_cvtph_ps(_mm512_castsi512_si256(x)); }
inline Floats floats_of_high_halves(Bytes x) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)); }
inline Bytes halves_of(Floats low, Floats high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT)),
                            _mm512_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT), 1);
}

// The low 16 bits of each integer of `even` and of `odd`, in turn.
inline Bytes interleave_low_words(Bytes even, Bytes odd) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
}
// Words first, first + 2, ... of two vectors, as pairs in integers.
inline __m512i every_second_word(int first) {
  const __m512i pairs = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_mullo_epi32(pairs, all_ints(4 << 16 | 4)), all_ints((first + 2) << 16 | first));
}
// The low, or the high, 16 bits of each integer of `a`, and then of `b`.
inline Bytes low_words(Bytes a, Bytes b) { return _mm512_permutex2var_epi16(a, every_second_word(0), b); }
inline Bytes high_words(Bytes a, Bytes b) { return _mm512_permutex2var_epi16(a, every_second_word(1), b); }

// Words a then b as bytes, out of order: below 0 becomes 0, above 255 becomes 255; or, for sign bytes, the sign is
// kept.
inline Bytes saturate_words(Bytes a, Bytes b) { return _mm512_packus_epi16(a, b); }
inline Bytes sign_bytes(Bytes a, Bytes b) { return _mm512_packs_epi16(a, b); }
inline Bytes in_order(Bytes x) { return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 5, 3, 1, 6, 4, 2, 0), x); }

inline Bytes keep_if_nonzero_byte(Bytes condition, Bytes x) {
  return _mm512_maskz_mov_epi8(_mm512_test_epi8_mask(condition, condition), x);
}
inline Bytes replace_negative_bytes(Bytes x, int with) {
  return _mm512_mask_mov_epi8(x, _mm512_movepi8_mask(x), _mm512_set1_epi8(static_cast<char>(with)));
}
inline Bytes replace_equal_words(Bytes x, int what, int with) {
  return _mm512_mask_mov_epi16(x, _mm512_cmpeq_epi16_mask(x, all_words(what)), all_words(with));
}

// Bytes: the same operations within each 16 of them.
inline Bytes all_bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline Bytes smaller_byte(Bytes a, Bytes b) { return _mm512_min_epu8(a, b); }
inline Bytes look_up(Bytes table, Bytes indices) { return _mm512_shuffle_epi8(table, indices); }
inline Bytes low_pairs(Bytes a, Bytes b) { return _mm512_unpacklo_epi8(a, b); }
inline Bytes high_pairs(Bytes a, Bytes b) { return _mm512_unpackhi_epi8(a, b); }
template <int kBits> Bytes shift_words_right_signed(Bytes x) { return _mm512_srai_epi16(x, kBits); }

// Bytes so that low_pairs takes the first half of them, and high_pairs the second one, in order.
inline Bytes for_pairs(Bytes x) { return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), x); }

using ByteMask = __mmask64;
inline ByteMask differ(Bytes a, Bytes b) { return _mm512_cmpneq_epi8_mask(a, b); }
inline Bytes else_zeros(ByteMask mask, Bytes x) { return _mm512_maskz_mov_epi8(mask, x); }
inline Bytes else_ones(ByteMask mask, Bytes x) { return _mm512_mask_mov_epi8(_mm512_set1_epi8(-1), mask, x); }

// The upper 16 bits of 16 integers as tables for look_up: their lower and their upper bytes.
struct Tables {
  Bytes lower, upper;
};
template <class IntsOf>
inline Tables tables_of_upper_words(const IntsOf& ints_of) {
  const Bytes ints = ints_of(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  return {_mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(ints, 16))),
          _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(ints, 24)))};
}
inline Floats floats_of_ints(Bytes x) { return _mm512_cvtepi32_ps(x); }

#else

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
template <int kBits> Bytes shift_ints_left(Bytes x) { return _mm256_slli_epi32(x, kBits); }
template <int kBits> Bytes shift_ints_right(Bytes x) { return _mm256_srli_epi32(x, kBits); }
template <int kBits> Bytes shift_words_left(Bytes x) { return _mm256_slli_epi16(x, kBits); }

inline Bytes words_of_signed_bytes(const uint8_t* from) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
}
inline Floats floats_of_low_halves(Bytes x) { return _mm256_cvtph_ps(_mm256_castsi256_si128(x)); }
inline Floats floats_of_high_halves(Bytes x) { return _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)); }
inline Bytes halves_of(Floats low, Floats high) {
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

using ByteMask = __m256i;  // ones where the condition is false
inline ByteMask differ(Bytes a, Bytes b) { return _mm256_cmpeq_epi8(a, b); }
inline Bytes else_zeros(ByteMask mask, Bytes x) { return _mm256_andnot_si256(mask, x); }
inline Bytes else_ones(ByteMask mask, Bytes x) { return _mm256_or_si256(mask, x); }

struct Tables {
  Bytes lower, upper;
};
template <class IntsOf>
inline Tables tables_of_upper_words(const IntsOf& ints_of) {
  const Bytes words = high_words(ints_of(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0)),
                                 ints_of(_mm256_set_epi32(15, 14, 13, 12, 11, 10, 9, 8)));
  const Bytes lower = _mm256_and_si256(words, _mm256_set1_epi16(0xff)), upper = _mm256_srli_epi16(words, 8);
  const Bytes bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(lower, upper), 0xd8);
  return {_mm256_permute4x64_epi64(bytes, 0x44), _mm256_permute4x64_epi64(bytes, 0xee)};
}
inline Floats floats_of_ints(Bytes x) { return _mm256_cvtepi32_ps(x); }

#endif

}  // namespace
}  // namespace multikv::cpu

#endif
