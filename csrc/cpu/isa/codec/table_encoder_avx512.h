// The TableEncoder of table_encoder.h with AVX-512, which looks up words in tables of 32.
#pragma once

#include "cpu/isa/codec/encode.h"

namespace multikv::cpu {
namespace {

struct EncoderTables {
  // `below` is the table of the first kBelow magnitudes from `base` on. After these, the steps repeat every kCycle
  // magnitudes, because an exponent has kCycle magnitudes.
  static constexpr int kBelow = 512, kCycle = 128;
  static constexpr int kWidthBelow = 16, kWidth = 8;  // magnitudes of a bucket
  alignas(64) uint16_t below[kBelow / kWidthBelow];
  alignas(64) uint16_t normal[2 * kCycle / kWidth];  // the buckets of a cycle, twice to fill a vector
  uint16_t base;  // the magnitude at which the tables begin; its code and those of smaller magnitudes are zero
};

template <Element kElement>
  requires(is_fp8(kElement))
class TableEncoder {
 public:
  static constexpr int kBelow = EncoderTables::kBelow, kCycle = EncoderTables::kCycle;

  explicit TableEncoder(const EncoderTables& tables)
      : below_(load(tables.below)), normal_(load(tables.normal)), base_(all_words(tables.base)),
        largest_(all_words(0)) {}

  [[gnu::always_inline]] Vectors<1> operator()(const BFloat16* from) const {
    const Bytes a = load(from), b = load(from + sizeof(Bytes) / 2);
    const Bytes codes = smaller_byte(saturate_words(encode_words(a), encode_words(b)), all_bytes(kLargestCode));
    Bytes signs = bit_and(sign_bytes(a, b), all_bytes(0x80));
    if constexpr (kLayout.fnuz) signs = keep_if_nonzero_byte(codes, signs);
    return {{in_order(bit_or(codes, signs))}};
  }

  // Returns true if an element that this object has encoded was NaN. The code that was written for it is wrong.
  bool has_seen_nan() const { return _mm512_cmpgt_epi16_mask(largest_, all_words(0x7f80)) != 0; }

  // Fills the tables. codes[i] is the code of the magnitude tables.base + i.
  static void fill(EncoderTables& tables, const uint8_t* codes) {
    fill(tables.below, codes, 0, kBelow, EncoderTables::kWidthBelow);
    fill(tables.normal, codes, kBelow, kBelow + kCycle, EncoderTables::kWidth);
    std::memcpy(tables.normal + kCycle / EncoderTables::kWidth, tables.normal, sizeof tables.normal / 2);
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kShift = 7 - kLayout.mantissa_bits;
  static constexpr int kLargestCode = encode_fp8(std::bit_cast<float>(kLayout.max_bits), kLayout);

  // Computes d for the magnitudes tables.base + [begin, end), in buckets of `width` magnitudes. At the first
  // magnitude past the step of a bucket, magnitude - tables.base + d is (codes[first] + 1) << kShift. A bucket without
  // a step gets the d that it would have if the step were at its end.
  static void fill(uint16_t* table, const uint8_t* codes, int begin, int end, int width) {
    for (int first = begin; first < end; first += width) {
      int num_past_step = 0;
      for (int i = 0; i < width; ++i) num_past_step += codes[first + i] - codes[first];
      *table++ = static_cast<uint16_t>(((codes[first] + 1) << kShift) - first - width + num_past_step);
    }
  }

  [[gnu::always_inline]] Bytes encode_words(Bytes elements) const {
    const Bytes magnitudes = bit_and(elements, all_words(0x7fff));
    largest_ = larger_word(largest_, magnitudes);
    const Bytes x = _mm512_subs_epu16(magnitudes, base_);
    const Bytes normal = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 3), normal_);
    const __mmask32 is_below = _mm512_cmplt_epi16_mask(x, all_words(kBelow));
    const Bytes d = _mm512_mask_permutexvar_epi16(normal, is_below, _mm512_srli_epi16(x, 4), below_);
    return _mm512_srli_epi16(add_words(x, d), kShift);
  }

  Bytes below_, normal_, base_;
  mutable Bytes largest_;
};

}  // namespace
}  // namespace multikv::cpu
