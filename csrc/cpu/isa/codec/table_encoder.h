// bfloat16 to fp8 by tables that are made for one scale: what Encoder (encode.h) gives, on words of 16 bits instead of
// floats, in two thirds of the steps.
//
// A number's code is a step function of its magnitude, taken as an integer. Above the smallest normal code the steps
// repeat with every exponent, 128 magnitudes; below, and down to half of the smallest code, there are 512 magnitudes at
// most. Cut into buckets so small that none holds two steps, (magnitude + d) >> kShift is the code for all of a bucket,
// if d puts the carry where the step is. Of these d there are 16 and 32.
#pragma once

#include "cpu/isa/codec/convert.h"

#if defined(__AVX512BW__)

namespace multikv::cpu {
namespace {

struct EncoderTables {
  static constexpr int kBelow = 512, kCycle = 128;    // magnitudes
  static constexpr int kWidthBelow = 16, kWidth = 8;  // of buckets
  alignas(64) uint16_t below[kBelow / kWidthBelow];
  alignas(64) uint16_t normal[2 * kCycle / kWidth];  // two cycles, as many as there are words in a vector
  uint16_t base;  // the magnitudes that the tables begin with: up to it, codes are zero
};

template <CacheFormat kFormat>
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

  // Whether a NaN was among the numbers. Its code is wrong.
  bool has_seen_nan() const { return _mm512_cmpgt_epi16_mask(largest_, all_words(0x7f80)) != 0; }

  // False: the tables do not give all codes of this scale.
  static bool make_tables(EncoderTables& tables, float scale) {
    using T = EncoderTables;
    constexpr int kCount = T::kBelow + T::kCycle;
    constexpr float kHalfOfSmallest = std::bit_cast<float>((127 - kLayout.bias - kLayout.mantissa_bits) << 23);
    tables.base = static_cast<uint16_t>(std::bit_cast<uint32_t>(scale * kHalfOfSmallest) >> 16);
    alignas(64) BFloat16 numbers[kCount];
    alignas(64) uint8_t codes[kCount], found[kCount];
    for (int i = 0; i < kCount; ++i) numbers[i].bits = static_cast<uint16_t>(tables.base + i);
    convert_with(Encoder<kFormat, BFloat16, 1>(scale), codes, numbers, kCount, Stores::kOrdinary);
    const auto fill = [&](uint16_t* table, int begin, int end, int width) {
      for (int first = begin; first < end; first += width) {
        int past_step = 0;
        for (int i = 0; i < width; ++i) past_step += codes[first + i] - codes[first];
        *table++ = static_cast<uint16_t>(((codes[first] + 1) << kShift) - first - width + past_step);
      }
    };
    fill(tables.below, 0, T::kBelow, T::kWidthBelow);
    fill(tables.normal, T::kBelow, kCount, T::kWidth);
    std::memcpy(tables.normal + T::kCycle / T::kWidth, tables.normal, sizeof tables.normal / 2);
    convert_with(TableEncoder(tables), found, numbers, kCount, Stores::kOrdinary);
    return std::memcmp(codes, found, kCount) == 0;
  }

 private:
  static constexpr Fp8Layout kLayout = layout_of(kFormat);
  static constexpr int kShift = 7 - kLayout.mantissa_bits;
  static constexpr int kLargestCode = encode_fp8(std::bit_cast<float>(kLayout.max_bits), kLayout);

  [[gnu::always_inline]] Bytes encode_words(Bytes numbers) const {
    const Bytes magnitudes = bit_and(numbers, all_words(0x7fff));
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
