// The TableEncoder of table_encoder.h with AVX2, which looks up bytes in tables of 16.
//
// x = magnitude - base is split into u = x >> kShift and v = x % 2^kShift, which are bytes. The code is
// u - c + ((v + d) >> kShift), with c and d as follows:
//
//                          tables                                        index    c
//   x < kBelow             low (u < 16), high (u >= 16)                  u        u
//   x >= kBelow            normal: the buckets of a cycle                x >> 3   kLastBelow
#pragma once

#include "cpu/isa/codec/encode.h"

namespace multikv::cpu {
namespace {

// Each table is held twice, because look_up() reads the table from both segments of a vector.
struct EncoderTables {
  static constexpr int kEntries = 16;
  alignas(32) uint8_t low[2 * kEntries], high[2 * kEntries], normal[2 * kEntries];
  uint16_t base;  // the magnitude at which the tables begin; its code and those of smaller magnitudes are zero
};

template <Element kElement>
  requires(is_fp8(kElement))
class TableEncoder {
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kShift = 7 - kLayout.mantissa_bits;
  static constexpr int kLargestCode = encode_fp8(std::bit_cast<float>(kLayout.max_bits), kLayout);

 public:
  // After the first kBelow magnitudes from `base` on, the steps repeat every kCycle magnitudes, because an exponent has
  // kCycle magnitudes.
  static constexpr int kCycle = 128, kBelow = (kLayout.mantissa_bits + 1) * kCycle;

  explicit TableEncoder(const EncoderTables& tables)
      : low_(load(tables.low)), high_(load(tables.high)), normal_(load(tables.normal)), base_(all_words(tables.base)),
        largest_(all_bytes(0)) {}

  [[gnu::always_inline]] Vectors<1> operator()(const BFloat16* from) const {
    const Bytes a = load(from), b = load(from + sizeof(Bytes) / 2);
    const Bytes codes = smaller_byte(encode(above_base(a), above_base(b)), all_bytes(kLargestCode));
    Bytes signs = bit_and(sign_bytes(a, b), all_bytes(0x80));
    if constexpr (kLayout.fnuz) signs = keep_if_nonzero_byte(codes, signs);
    return {{in_order(bit_or(codes, signs))}};
  }

  // Returns true if an element that this object has encoded may have been NaN. The code that was written for it is
  // wrong. u saturates for NaN and infinities, and otherwise only for magnitudes of more than 2^12 times the largest
  // fp8 number.
  bool has_seen_nan() const { return _mm256_movemask_epi8(_mm256_cmpeq_epi8(largest_, all_bytes(0xff))) != 0; }

  // Fills the tables. codes[i] is the code of the magnitude tables.base + i.
  static void fill(EncoderTables& tables, const uint8_t* codes) {
    for (int u = 0; u < 2 * EncoderTables::kEntries; ++u) {
      const int first = (u < kLastBelow ? u : kLastBelow) << kShift;
      set(u < EncoderTables::kEntries ? tables.low : tables.high, u % EncoderTables::kEntries,
          (codes[first] << kShift) + num_past_step(codes + first, kWidthBelow));
    }
    for (int i = 0; i < EncoderTables::kEntries; ++i) {
      const int first = kBelow + i * kWidth, u = first >> kShift, v = first % kWidthBelow;
      const int code_past_step = codes[first] + 1 - (u - kLastBelow);
      set(tables.normal, i, (code_past_step << kShift) - v - kWidth + num_past_step(codes + first, kWidth));
    }
  }

 private:
  static constexpr int kWidthBelow = 1 << kShift, kWidth = kCycle / EncoderTables::kEntries;  // magnitudes of a bucket
  static constexpr int kLastBelow = kBelow / kWidthBelow - 1;  // the largest u of an x below kBelow

  // The number of magnitudes of a bucket that have the code past the step of the bucket.
  static int num_past_step(const uint8_t* codes, int width) {
    int count = 0;
    for (int i = 0; i < width; ++i) count += codes[i] - codes[0];
    return count;
  }
  static void set(uint8_t* table, int entry, int d) {
    table[entry] = table[entry + EncoderTables::kEntries] = static_cast<uint8_t>(d);
  }

  [[gnu::always_inline]] Bytes above_base(Bytes elements) const {
    return _mm256_subs_epu16(bit_and(elements, all_words(0x7fff)), base_);
  }

  // Returns the codes of two vectors of words x. The caller replaces codes above kLargestCode by kLargestCode.
  [[gnu::always_inline]] Bytes encode(Bytes x, Bytes y) const {
    const Bytes u = saturate_words(_mm256_srli_epi16(x, kShift), _mm256_srli_epi16(y, kShift));
    const Bytes cycle = saturate_words(bit_and(x, all_words(kCycle - 1)), bit_and(y, all_words(kCycle - 1)));
    largest_ = _mm256_max_epu8(largest_, u);
    const Bytes past_below = _mm256_subs_epu8(u, all_bytes(kLastBelow));  // u - c
    const Bytes is_below = _mm256_cmpeq_epi8(past_below, all_bytes(0));
    const Bytes normal = look_up(normal_, bit_and(_mm256_srli_epi16(cycle, 3), all_bytes(EncoderTables::kEntries - 1)));
    const Bytes d = _mm256_blendv_epi8(normal, look_up_below(u), is_below);
    const Bytes sum = _mm256_add_epi8(bit_and(cycle, all_bytes(kWidthBelow - 1)), d);
    return _mm256_add_epi8(past_below, bit_and(_mm256_srli_epi16(sum, kShift), all_bytes(0xff >> kShift)));
  }

  // Returns the d of every u <= kLastBelow.
  [[gnu::always_inline]] Bytes look_up_below(Bytes u) const {
    if constexpr (kLastBelow < EncoderTables::kEntries) return look_up(low_, u);
    // Bit 4 of u is moved to bit 7, which selects the byte.
    return _mm256_blendv_epi8(look_up(low_, u), look_up(high_, u), _mm256_slli_epi16(u, 3));
  }

  Bytes low_, high_, normal_, base_;
  mutable Bytes largest_;  // in each byte, the largest u so far
};

}  // namespace
}  // namespace multikv::cpu
