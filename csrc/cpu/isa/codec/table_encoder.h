// Encodes bfloat16 elements as fp8 codes with tables for one scale. The codes are those of Encoder (encode.h), but they
// are computed on 16-bit words instead of floats, in two thirds of the steps.
//
// The code is a step function of the magnitude's bits, taken as an integer. The magnitudes are divided into buckets so
// narrow that no bucket holds two steps. Each bucket has its own d, such that the code of all its magnitudes is
// (magnitude - base + d) >> kShift, where base is the magnitude at which the tables begin. The addition of d carries
// into the code where the step is.
//
//   magnitude       |  bucket 0  |  bucket 1  |  bucket 2  |
//   code            _____________________|~~~~~~~~~~~~~~~~~        d of bucket 1 makes the carry happen here
//
// An exponent of bfloat16 has 128 magnitudes. Above the smallest normal code, the steps are the same in every exponent,
// so 16 buckets of 8 magnitudes suffice. Between half of the smallest fp8 number and the smallest normal number, there
// are at most 512 magnitudes: 32 buckets of 16 magnitudes.
#pragma once

#include "cpu/isa/codec/encode.h"
#include "cpu/isa/codec/vector_loop.h"

#if defined(__AVX512BW__)

namespace multikv::cpu {
namespace {

struct EncoderTables {
  // `below` is the table of the first kBelow magnitudes from `base` on. After these, the steps repeat every kCycle
  // magnitudes, because an exponent has kCycle magnitudes.
  static constexpr int kBelow = 512, kCycle = 128;
  static constexpr int kWidthBelow = 16, kWidth = 8;  // magnitudes of a bucket
  alignas(64) uint16_t below[kBelow / kWidthBelow];
  alignas(64) uint16_t normal[2 * kCycle / kWidth];  // the buckets of a cycle, twice to fill a vector
  uint16_t base;  // the magnitude at which the tables begin; the codes of smaller magnitudes, and its own, are zero
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

  // Returns true if an element that this object has encoded was NaN. The code that was written for it is wrong.
  bool has_seen_nan() const { return _mm512_cmpgt_epi16_mask(largest_, all_words(0x7f80)) != 0; }

  // Returns false if no tables give the right codes with this scale. The tables are tried with every magnitude that
  // they hold.
  static bool make_tables(EncoderTables& tables, float scale) {
    using T = EncoderTables;
    constexpr int kCount = T::kBelow + T::kCycle;
    constexpr float kHalfOfSmallest = std::bit_cast<float>((127 - kLayout.bias - kLayout.mantissa_bits) << 23);
    tables.base = static_cast<uint16_t>(std::bit_cast<uint32_t>(scale * kHalfOfSmallest) >> 16);
    alignas(64) BFloat16 elements[kCount];
    alignas(64) uint8_t codes[kCount], codes_by_tables[kCount];
    for (int i = 0; i < kCount; ++i) elements[i].bits = static_cast<uint16_t>(tables.base + i);
    convert_with(Encoder<kElement, BFloat16, 1>(scale), codes, elements, kCount, Stores::kOrdinary);
    fill(tables.below, codes, 0, T::kBelow, T::kWidthBelow);
    fill(tables.normal, codes, T::kBelow, kCount, T::kWidth);
    std::memcpy(tables.normal + T::kCycle / T::kWidth, tables.normal, sizeof tables.normal / 2);
    convert_with(TableEncoder(tables), codes_by_tables, elements, kCount, Stores::kOrdinary);
    return std::memcmp(codes, codes_by_tables, kCount) == 0;
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
