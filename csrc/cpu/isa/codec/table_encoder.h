// bfloat16 to fp8 by tables that are made for one scale: the same codes as Encoder (encode.h), computed on 16-bit words
// instead of floats, in two thirds of the steps.
//
// The code is a step function of the magnitude, taken as an integer. Magnitudes are cut into buckets so narrow that
// none holds two steps. In a bucket, (magnitude + d) >> kShift is the code of all magnitudes, if d puts the carry where
// the step is:
//
//   magnitude       |  bucket 0  |  bucket 1  |  bucket 2  |
//   code            _____________________|~~~~~~~~~~~~~~~~~        d of bucket 1 makes the carry happen here
//
// Above the smallest normal code the steps repeat with every exponent, which is 128 magnitudes: 16 values of d. Below,
// and down to half of the smallest code, lie at most 512 magnitudes: 32 values of d, for wider buckets.
#pragma once

#include "cpu/isa/codec/encode.h"
#include "cpu/isa/codec/vector_loop.h"

#if defined(__AVX512BW__)

namespace multikv::cpu {
namespace {

struct EncoderTables {
  static constexpr int kBelow = 512, kCycle = 128;    // magnitudes
  static constexpr int kWidthBelow = 16, kWidth = 8;  // magnitudes of a bucket
  alignas(64) uint16_t below[kBelow / kWidthBelow];
  alignas(64) uint16_t normal[2 * kCycle / kWidth];  // the same cycle twice, which fills a vector
  uint16_t base;  // the magnitude at which the tables begin; up to this magnitude codes are zero
};

template <Element kElement>
  requires(is_fp8(kElement))
class TableEncoder {
 public:
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

  // Whether one of the elements so far was a NaN. The code written for a NaN is wrong.
  bool has_seen_nan() const { return _mm512_cmpgt_epi16_mask(largest_, all_words(0x7f80)) != 0; }

  // Returns false if tables cannot give all codes of this scale.
  static bool make_tables(EncoderTables& tables, float scale) {
    using T = EncoderTables;
    constexpr int kCount = T::kBelow + T::kCycle;
    constexpr float kHalfOfSmallest = std::bit_cast<float>((127 - kLayout.bias - kLayout.mantissa_bits) << 23);
    tables.base = static_cast<uint16_t>(std::bit_cast<uint32_t>(scale * kHalfOfSmallest) >> 16);
    alignas(64) BFloat16 elements[kCount];
    alignas(64) uint8_t codes[kCount], found[kCount];
    for (int i = 0; i < kCount; ++i) elements[i].bits = static_cast<uint16_t>(tables.base + i);
    convert_with(Encoder<kElement, BFloat16, 1>(scale), codes, elements, kCount, Stores::kOrdinary);
    fill(tables.below, codes, 0, T::kBelow, T::kWidthBelow);
    fill(tables.normal, codes, T::kBelow, kCount, T::kWidth);
    std::memcpy(tables.normal + T::kCycle / T::kWidth, tables.normal, sizeof tables.normal / 2);
    convert_with(TableEncoder(tables), found, elements, kCount, Stores::kOrdinary);
    return std::memcmp(codes, found, kCount) == 0;
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kElement);
  static constexpr int kShift = 7 - kLayout.mantissa_bits;
  static constexpr int kLargestCode = encode_fp8(std::bit_cast<float>(kLayout.max_bits), kLayout);

  // The values of d for the magnitudes [begin, end), counted from tables.base, in buckets of `width`.
  static void fill(uint16_t* table, const uint8_t* codes, int begin, int end, int width) {
    for (int first = begin; first < end; first += width) {
      int past_step = 0;
      for (int i = 0; i < width; ++i) past_step += codes[first + i] - codes[first];
      *table++ = static_cast<uint16_t>(((codes[first] + 1) << kShift) - first - width + past_step);
    }
  }

  [[gnu::always_inline]] Bytes encode_words(Bytes elements) const {
    const Bytes magnitudes = bit_and(elements, all_words(0x7fff));
    largest_ = larger_word(largest_, magnitudes);
    const Bytes x = _mm512_subs_epu16(magnitudes, base_);
    const Bytes normal = _mm512_permutexvar_epi16(_mm512_srli_epi16(x, 3), normal_);
    const __mmask32 is_below = _mm512_cmplt_epi16_mask(x, all_words(EncoderTables::kBelow));
    const Bytes d = _mm512_mask_permutexvar_epi16(normal, is_below, _mm512_srli_epi16(x, 4), below_);
    return _mm512_srli_epi16(add_words(x, d), kShift);
  }

  Bytes below_, normal_, base_;
  mutable Bytes largest_;
};

}  // namespace
}  // namespace multikv::cpu

#endif
