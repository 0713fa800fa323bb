// Loads the elements of caches and queries as lanes of float32. Every conversion is exact.
#pragma once

#include "core/fp8.h"
#include "cpu/isa/attention/lanes.h"
#include "cpu/isa/codec/elements.h"

namespace multikv::cpu {
namespace {

// Reads elements that are stored as kElement.
//   load(from)   sixteen elements
//   one(from)    one element
template <Element kElement>
struct Reader {
  static constexpr int64_t kBytes = num_bits(kElement) / 8;
  static float one(const char* from) { return decode_fp8(static_cast<uint8_t>(*from), layout_of(kElement)); }
  static Lanes load(const char* from);
};

template <>
struct Reader<Element::kFloat32> {
  static constexpr int64_t kBytes = 4;
  static float one(const char* from) {
    float x;
    std::memcpy(&x, from, sizeof x);
    return x;
  }
  [[gnu::always_inline]] static Lanes load(const char* from) { return load_lanes(from); }
};

template <class T>
struct Reader16 {
  static constexpr int64_t kBytes = 2;
  static float one(const char* from) {
    T x;
    std::memcpy(&x, from, sizeof x);
    return widen(x);
  }
};

// Returns the lanes value_of(0) .. value_of(kLanes - 1). Compilers vectorise the loop.
template <class ValueOf>
[[gnu::always_inline]] inline Lanes lanes_of(const ValueOf& value_of) {
  float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = value_of(i);
  return load_lanes(values);
}

#if defined(__AVX2__)

#if defined(__AVX512BW__)
[[gnu::always_inline]] inline Lanes widened_bfloat16s(__m256i words) {
  return {{Native(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(words), 16)))}};
}
[[gnu::always_inline]] inline Lanes widened_float16s(__m256i words) { return {{Native(_mm512_cvtph_ps(words))}}; }
#else
[[gnu::always_inline]] inline Lanes widened_float16s(__m256i words) {
  return {{Native(_mm256_cvtph_ps(_mm256_castsi256_si128(words))),
           Native(_mm256_cvtph_ps(_mm256_extracti128_si256(words, 1)))}};
}
#endif

[[gnu::always_inline]] inline __m256i load_words(const char* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

template <>
struct Reader<Element::kFloat16> : Reader16<Float16> {
  [[gnu::always_inline]] static Lanes load(const char* from) { return widened_float16s(load_words(from)); }
};

template <>
struct Reader<Element::kBFloat16> : Reader16<BFloat16> {
  [[gnu::always_inline]] static Lanes load(const char* from) {
#if defined(__AVX512BW__)
    return widened_bfloat16s(load_words(from));
#else
    const auto half = [](const char* at) {
      const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
      return Native(_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)));
    };
    return {{half(from), half(from + 16)}};
#endif
  }
};

// Converts sixteen fp8 codes to float16 numbers: for e5m2 formats the values of the codes, for e4m3 formats the values
// times 2^(bias - 15). codec/decode.h draws the conversions.
template <Element kElement>
[[gnu::always_inline]] inline __m256i float16s_of_codes(__m256i codes) {
  constexpr Fp8Layout kLayout = layout_of(kElement);
  const auto all = [](int x) { return _mm256_set1_epi16(static_cast<int16_t>(x)); };
  if constexpr (kElement == Element::kE5M2) return _mm256_slli_epi16(codes, 8);
  __m256i float16s;
  if constexpr (kLayout.mantissa_bits == 3) {
    float16s = _mm256_and_si256(_mm256_slli_epi16(codes, 7), all(0xbfff));
  } else {
    const __m256i magnitudes = _mm256_and_si256(codes, all(0x7f));
    const __m256i normal = _mm256_add_epi16(_mm256_slli_epi16(magnitudes, 8), all(-0x400));
    float16s = _mm256_or_si256(_mm256_max_epi16(normal, _mm256_slli_epi16(magnitudes, 7)),
                               _mm256_and_si256(codes, all(0x8000)));
  }
  if constexpr (kLayout.fnuz) {
    return _mm256_blendv_epi8(float16s, all(0x7e00), _mm256_cmpeq_epi16(float16s, all(0x8000)));
  } else {
    return _mm256_or_si256(float16s, _mm256_and_si256(_mm256_add_epi16(float16s, all(0x80)), all(0x4000)));
  }
}

template <Element kElement>
[[gnu::always_inline]] inline Lanes Reader<kElement>::load(const char* from) {
  constexpr Fp8Layout kLayout = layout_of(kElement);
  const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const Lanes float16s = widened_float16s(float16s_of_codes<kElement>(codes));
  if constexpr (kLayout.mantissa_bits == 2) {
    return float16s;
  } else {
    return map_lanes([](Native x) { return x * static_cast<float>(1 << (15 - layout_of(kElement).bias)); }, float16s);
  }
}

#else

template <>
struct Reader<Element::kFloat16> : Reader16<Float16> {
  static Lanes load(const char* from) {
    return lanes_of([&](int i) { return one(from + 2 * i); });
  }
};

template <>
struct Reader<Element::kBFloat16> : Reader16<BFloat16> {
  static Lanes load(const char* from) {
    return lanes_of([&](int i) { return one(from + 2 * i); });
  }
};

template <Element kElement>
inline Lanes Reader<kElement>::load(const char* from) {
  return lanes_of([&](int i) { return one(from + i); });
}

#endif

// Reads `count` contiguous elements.
template <class Reader>
inline void read_elements(float* to, const char* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store_lanes(to + i, Reader::load(from + i * Reader::kBytes));
  for (; i < count; ++i) to[i] = Reader::one(from + i * Reader::kBytes);
}

// Calls with<Reader>() for the reader of an element that is known at run time.
template <class With>
decltype(auto) with_reader(Element element, With with) {
  switch (element) {
    case Element::kFloat32: return with.template operator()<Reader<Element::kFloat32>>();
    case Element::kFloat16: return with.template operator()<Reader<Element::kFloat16>>();
    case Element::kBFloat16: return with.template operator()<Reader<Element::kBFloat16>>();
    case Element::kE4M3FN: return with.template operator()<Reader<Element::kE4M3FN>>();
    case Element::kE5M2: return with.template operator()<Reader<Element::kE5M2>>();
    case Element::kE4M3FNUZ: return with.template operator()<Reader<Element::kE4M3FNUZ>>();
    case Element::kE5M2FNUZ: return with.template operator()<Reader<Element::kE5M2FNUZ>>();
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  __builtin_unreachable();  // no format of these ops has such an element
}

}  // namespace
}  // namespace multikv::cpu
