// The vector operations that the codecs use. They have the same names for vectors of 512 bits (AVX-512) and of 256 bits
// (AVX2). MULTIKV_HAS_SIMD is defined where they exist; elsewhere the codecs are loops that the compiler vectorises.
//
// A value of type Bytes is a vector of bytes, of 16-bit words or of 32-bit integers. The name of an operation says
// which of them it takes.
//
//   operation                                  result
//   all, all_ints, all_words, all_bytes        the same value in each element
//   negated_fma(a, b, c)                       c - a * b, rounded once
//   smaller_or_second(a, b)                    the smaller float; b where a or b is NaN
//   sums_of_neighbours(a, b)                   in each segment of 128 bits, the sums of neighbouring floats of a's
//                                              segment, then of b's
//   sums_of_segments(a, b)                     the sums of neighbouring segments of a, then of b
//   is_any_word_above(x, limit)                whether an unsigned word of x is larger than `limit`
//   words_of_signed_bytes(from)                sizeof(Bytes) / 2 bytes, sign-extended
//   widen_low_float16s, widen_high_float16s    the first, or the last, half of a vector of float16, as float32
//   narrow_to_float16s(low, high)              float16 of both, rounded to nearest even
//   interleave_low_words(even, odd)            the low words of the integers of `even` and `odd`, alternating
//   low_words(a, b), high_words(a, b)          the low, or the high, words of the integers of a, then of b
//   saturate_words(a, b)                       signed words clamped to bytes 0 .. 255, in the order shown below
//   sign_bytes(a, b)                           signed words as bytes of the same signs, in the order shown below
//   in_order(x)                                bytes of x, reordered from the order shown below
//   keep_if_nonzero_byte(condition, x)         bytes of x; 0 where `condition` is 0
//   replace_negative_bytes(x, with)            bytes of x; `with` where they are negative
//   replace_equal_words(x, what, with)         words of x; `with` where they equal `what`
//   look_up(table, indices)                    table[index] for each byte index < 16; every segment of 128 bits of
//                                              `table` holds the same 16 bytes
//   for_pairs(x)                               the bytes of x in the order that low_pairs() and high_pairs() expect
//   low_pairs(a, b), high_pairs(a, b)          the first half, and the last half, of the words x[i] | y[i] << 8, where
//                                              a = for_pairs(x) and b = for_pairs(y)
//   differ(a, b)                               the mask of the bytes that differ
//   else_zeros(mask, x), else_ones(mask, x)    bytes of x; 0x00, or 0xff, where the mask is not set
//   tables_of_high_words(ints_of)              two tables for look_up(). ints_of(x) is a vector with f(i) for each
//                                              integer i of x. For i < 16, entry i of the first table is the bits
//                                              16 .. 23 of f(i), and that of the second table is the bits 24 .. 31
//
// The instructions that pack and unpack work on each segment of 128 bits separately, so their results are not in order.
// With AVX2, where the vectors a and b have the segments a0, a1 and b0, b1:
//
//                                        segment 0   segment 1
//   saturate_words(a, b)               |  a0   b0  |  a1   b1  |
//   in_order(saturate_words(a, b))     |  a0   a1  |  b0   b1  |
#pragma once

#include "cpu/isa/simd/vec.h"

#if defined(__AVX512BW__)
#define MULTIKV_HAS_SIMD
#include "cpu/isa/simd/ops_avx512.h"
#elif defined(__AVX2__)
#define MULTIKV_HAS_SIMD
#include "cpu/isa/simd/ops_avx2.h"
#endif

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

template <int kCount>
struct Vectors {
  Bytes data[kCount];
};

}  // namespace
}  // namespace multikv::cpu

#endif
