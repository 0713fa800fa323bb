// The operations of ops.h with AVX-512.
#pragma once

#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

using Floats = __m512;

inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Bytes all_words(int x) { return _mm512_set1_epi16(static_cast<int16_t>(x)); }
inline Bytes all_ints(int x) { return _mm512_set1_epi32(x); }
inline Bytes as_ints(Floats x) { return _mm512_castps_si512(x); }
inline Floats as_floats(Bytes x) { return _mm512_castsi512_ps(x); }

inline Floats product(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
inline Floats negated_fma(Floats a, Floats b, Floats c) { return _mm512_fnmadd_ps(a, b, c); }
inline Floats smaller_or_second(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats sum(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats difference(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats quotient(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats square_root(Floats x) { return _mm512_sqrt_ps(x); }
inline Floats sums_of_neighbours(Floats a, Floats b) {
  return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
inline Floats sums_of_segments(Floats a, Floats b) {
  return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}

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
inline Bytes larger_unsigned_word(Bytes a, Bytes b) { return _mm512_max_epu16(a, b); }
inline bool is_any_word_above(Bytes x, int limit) { return _mm512_cmpgt_epu16_mask(x, all_words(limit)) != 0; }
template <int kBits> Bytes shift_ints_left(Bytes x) { return _mm512_slli_epi32(x, kBits); }
template <int kBits> Bytes shift_ints_right(Bytes x) { return _mm512_srli_epi32(x, kBits); }
template <int kBits> Bytes shift_words_left(Bytes x) { return _mm512_slli_epi16(x, kBits); }

inline Bytes words_of_signed_bytes(const uint8_t* from) {
  return _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Floats widen_low_float16s(Bytes x) { return _mm512_cvtph_ps(_mm512_castsi512_si256(x)); }
inline Floats widen_high_float16s(Bytes x) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(x, 1)); }
inline Bytes narrow_to_float16s(Floats low, Floats high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtps_ph(low, _MM_FROUND_TO_NEAREST_INT)),
                            _mm512_cvtps_ph(high, _MM_FROUND_TO_NEAREST_INT), 1);
}

inline Bytes interleave_low_words(Bytes even, Bytes odd) {
  return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
}
// Returns the indices first, first + 2, ..., first + 62 for _mm512_permutex2var_epi16(), which numbers the words of its
// first vector from 0 to 31 and those of its second vector from 32 to 63.
inline __m512i every_second_word(int first) {
  const __m512i pairs = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm512_add_epi32(_mm512_mullo_epi32(pairs, all_ints(4 << 16 | 4)), all_ints((first + 2) << 16 | first));
}
inline Bytes low_words(Bytes a, Bytes b) { return _mm512_permutex2var_epi16(a, every_second_word(0), b); }
inline Bytes high_words(Bytes a, Bytes b) { return _mm512_permutex2var_epi16(a, every_second_word(1), b); }

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

inline Bytes all_bytes(int x) { return _mm512_set1_epi8(static_cast<char>(x)); }
inline Bytes smaller_byte(Bytes a, Bytes b) { return _mm512_min_epu8(a, b); }
inline Bytes look_up(Bytes table, Bytes indices) { return _mm512_shuffle_epi8(table, indices); }
inline Bytes low_pairs(Bytes a, Bytes b) { return _mm512_unpacklo_epi8(a, b); }
inline Bytes high_pairs(Bytes a, Bytes b) { return _mm512_unpackhi_epi8(a, b); }
template <int kBits> Bytes shift_words_right_signed(Bytes x) { return _mm512_srai_epi16(x, kBits); }

inline Bytes for_pairs(Bytes x) { return _mm512_permutexvar_epi64(_mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0), x); }

using ByteMask = __mmask64;
inline ByteMask differ(Bytes a, Bytes b) { return _mm512_cmpneq_epi8_mask(a, b); }
inline Bytes else_zeros(ByteMask mask, Bytes x) { return _mm512_maskz_mov_epi8(mask, x); }
inline Bytes else_ones(ByteMask mask, Bytes x) { return _mm512_mask_mov_epi8(_mm512_set1_epi8(-1), mask, x); }

struct Tables {
  Bytes low, high;
};
template <VectorMap IntsOf>
inline Tables tables_of_high_words(const IntsOf& ints_of) {
  const Bytes ints = ints_of(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  return {_mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(ints, 16))),
          _mm512_broadcast_i32x4(_mm512_cvtepi32_epi8(_mm512_srli_epi32(ints, 24)))};
}

inline Floats floats_of_ints(Bytes x) { return _mm512_cvtepi32_ps(x); }

}  // namespace
}  // namespace multikv::cpu
