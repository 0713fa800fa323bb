// From formats and scales that are known at run time to the functions that are compiled for them.
#pragma once

#include "cpu/isa/codec/convert.h"
#include "cpu/isa/codec/table_encoder.h"

namespace multikv::cpu {
namespace {

// Rows of `count` numbers, so many bytes apart on either side.
struct Matrix {
  int64_t count, num_rows = 1, to_stride = 0, from_stride = 0;
  int64_t ahead = 0;  // what will be read after a row lies so many bytes behind its start
};

// Scales by which a cache write divides: num_scales of them, `stride` apart. num_numbers: how many numbers it divides.
struct Scales {
  const float* data;
  int64_t stride, num_scales, num_numbers;
};

// Divides by these scales and rounds to fp8. What there is to know about them is found out once for all calls.
class Quantiser {
 public:
  Quantiser(CacheFormat format, Float dtype, const Scales& scales);

  // False for kSame, which has no scales.
  explicit operator bool() const { return function_ != nullptr; }

  void operator()(char* to, const char* from, const Matrix& matrix, float scale, Stores stores) const {
    function_(*this, to, from, matrix, scale, stores);
  }

 private:
  using Function = void (*)(const Quantiser& self, char* to, const char* from, const Matrix& matrix, float scale,
                            Stores stores);

  // convert(to, from): a row.
  template <class Input, class Convert>
  [[gnu::always_inline]] static void for_rows(char* to, const char* from, const Matrix& matrix,
                                              const Convert& convert) {
    for (int64_t row = 0; row < matrix.num_rows; ++row, to += matrix.to_stride, from += matrix.from_stride) {
      convert(reinterpret_cast<uint8_t*>(to), reinterpret_cast<const Input*>(from));
    }
  }

  template <CacheFormat kFormat, class Input>
  static void with_any_scale(const Quantiser&, char* to, const char* from, const Matrix& matrix, float scale,
                             Stores stores) {
    for_rows<Input>(to, from, matrix,
                    [&](uint8_t* to, const Input* from) { quantise<kFormat>(to, from, matrix.count, scale, stores); });
  }

  template <CacheFormat kFormat, class Input>
  Function function_from(const Scales& scales);
  template <CacheFormat kFormat>
  Function function_to(Float dtype, const Scales& scales);

#ifdef MULTIKV_HAS_LANES
  template <CacheFormat kFormat, class Input, int kSteps>
  static void with_encoder(const Quantiser&, char* to, const char* from, const Matrix& matrix, float scale,
                           Stores stores) {
    const Encoder<kFormat, Input, kSteps> encode(scale);
    for_rows<Input>(to, from, matrix, [&] [[gnu::always_inline]] (uint8_t* to, const Input* from) {
      convert_with(encode, to, from, matrix.count, stores, reinterpret_cast<const char*>(from) + matrix.ahead);
    });
  }
#endif

#if defined(__AVX512BW__)
  // As many numbers as pay for making the tables.
  static constexpr int64_t kManyNumbers = 32768;

  template <CacheFormat kFormat>
  static void with_tables(const Quantiser& self, char* to, const char* from, const Matrix& matrix, float scale,
                          Stores stores) {
    const TableEncoder<kFormat> encode(self.tables_);
    for_rows<BFloat16>(to, from, matrix, [&] [[gnu::always_inline]] (uint8_t* to, const BFloat16* from) {
      convert_with(encode, to, from, matrix.count, stores, reinterpret_cast<const char*>(from) + matrix.ahead);
    });
    if (encode.has_seen_nan()) {
      finish(stores);  // so that the second time comes second
      with_encoder<kFormat, BFloat16, 1>(self, to, from, matrix, scale, stores);
    }
  }

  EncoderTables tables_;
#endif
  Function function_ = nullptr;
};

template <CacheFormat kFormat, class Input>
Quantiser::Function Quantiser::function_from([[maybe_unused]] const Scales& scales) {
#ifdef MULTIKV_HAS_LANES
  constexpr int kSignificantBits = std::is_same_v<Input, float> ? 24 : std::is_same_v<Input, Half> ? 11 : 8;
  bool suffices = kSignificantBits < 24;
  for (int64_t i = 0; i < scales.num_scales; ++i) {
    const float scale = scales.data[i * scales.stride];
    if (!encoder_takes(scale)) return with_any_scale<kFormat, Input>;
    if constexpr (kSignificantBits < 24) suffices = suffices && estimate_suffices<kSignificantBits>(scale);
  }
#if defined(__AVX512BW__)
  if constexpr (std::is_same_v<Input, BFloat16>) {
    if (scales.num_scales == 1 && scales.num_numbers >= kManyNumbers &&
        TableEncoder<kFormat>::make_tables(tables_, *scales.data)) {
      return with_tables<kFormat>;
    }
  }
#endif
  if constexpr (kSignificantBits == 24) return with_encoder<kFormat, Input, 2>;
  else return suffices ? with_encoder<kFormat, Input, 0> : with_encoder<kFormat, Input, 1>;
#else
  return with_any_scale<kFormat, Input>;
#endif
}

template <CacheFormat kFormat>
Quantiser::Function Quantiser::function_to(Float dtype, const Scales& scales) {
  switch (dtype) {
    case Float::kFloat32: return function_from<kFormat, float>(scales);
    case Float::kFloat16: return function_from<kFormat, Half>(scales);
    case Float::kBFloat16: break;
  }
  return function_from<kFormat, BFloat16>(scales);
}

inline Quantiser::Quantiser(CacheFormat format, Float dtype, const Scales& scales) {
  switch (format) {
    case CacheFormat::kSame: break;
    case CacheFormat::kE4M3FN: function_ = function_to<CacheFormat::kE4M3FN>(dtype, scales); break;
    case CacheFormat::kE5M2: function_ = function_to<CacheFormat::kE5M2>(dtype, scales); break;
    case CacheFormat::kE4M3FNUZ: function_ = function_to<CacheFormat::kE4M3FNUZ>(dtype, scales); break;
    case CacheFormat::kE5M2FNUZ: function_ = function_to<CacheFormat::kE5M2FNUZ>(dtype, scales); break;
  }
}

}  // namespace
}  // namespace multikv::cpu
