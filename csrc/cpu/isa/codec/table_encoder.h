// Encodes bfloat16 elements as fp8 codes with tables for one scale. The codes are those of Encoder (encode.h), but they
// are computed on words and bytes instead of floats, in half to two thirds of the steps.
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
#include "cpu/isa/codec/table_encoder_avx512.h"
#elif defined(__AVX2__)
#include "cpu/isa/codec/table_encoder_avx2.h"
#endif

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// Returns false if no tables give the right codes with this scale. The tables are tried with every magnitude that they
// hold.
template <Element kElement>
bool make_tables(EncoderTables& tables, float scale) {
  using Tabled = TableEncoder<kElement>;
  constexpr Fp8Layout kLayout = layout_of(kElement);
  constexpr int kCount = Tabled::kBelow + Tabled::kCycle;
  constexpr float kHalfOfSmallest = std::bit_cast<float>((127 - kLayout.bias - kLayout.mantissa_bits) << 23);
  tables.base = static_cast<uint16_t>(std::bit_cast<uint32_t>(scale * kHalfOfSmallest) >> 16);
  alignas(64) BFloat16 elements[kCount];
  alignas(64) uint8_t codes[kCount], codes_by_tables[kCount];
  for (int i = 0; i < kCount; ++i) elements[i].bits = static_cast<uint16_t>(tables.base + i);
  convert_with(Encoder<kElement, BFloat16, 1>(scale), codes, elements, kCount, Stores::kOrdinary);
  Tabled::fill(tables, codes);
  convert_with(Tabled(tables), codes_by_tables, elements, kCount, Stores::kOrdinary);
  return std::memcmp(codes, codes_by_tables, kCount) == 0;
}

}  // namespace
}  // namespace multikv::cpu

#endif
