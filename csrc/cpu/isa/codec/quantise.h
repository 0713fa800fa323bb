// Chooses the fastest quantisation for an element, a dtype and scales that are known at run time.
#pragma once

#include "cpu/isa/codec/convert.h"
#include "cpu/isa/codec/matrix.h"
#include "cpu/isa/codec/table_encoder.h"

namespace multikv::cpu {
namespace {

// The scales that an op divides by: data[i * stride] for i < num_scales.
struct Scales {
  const float* data;
  int64_t stride, num_scales;
  int64_t num_elements;  // the number of elements that the op divides
};

// Divides elements by a scale and rounds the quotients to fp8. The constructor examines all scales once, and chooses
// the fastest function that gives the right codes with each of them.
class Quantiser {
 public:
  // Scales are not read unless the element is an fp8 element.
  Quantiser(Element element, Float dtype, const Scales& scales);

  // Returns false if the cache stores floats: then the caller copies the elements.
  explicit operator bool() const { return function_ != nullptr; }

  void operator()(char* to, const char* from, const Matrix& matrix, float scale, Stores stores) const {
    function_(*this, to, from, matrix, scale, stores);
  }

 private:
  using Function = void (*)(const Quantiser& self, char* to, const char* from, const Matrix& matrix, float scale,
                            Stores stores);

  // Calls convert(to, from) for each row.
  template <FloatElement Input, std::invocable<uint8_t*, const Input*> Convert>
  [[gnu::always_inline]] static void for_rows(char* to, const char* from, const Matrix& matrix,
                                              const Convert& convert) {
    for (int64_t row = 0; row < matrix.num_rows; ++row, to += matrix.to_stride, from += matrix.from_stride) {
      convert(reinterpret_cast<uint8_t*>(to), reinterpret_cast<const Input*>(from));
    }
  }

  template <Element kElement, FloatElement Input>
  static void with_any_scale(const Quantiser&, char* to, const char* from, const Matrix& matrix, float scale,
                             Stores stores) {
    for_rows<Input>(to, from, matrix,
                    [&](uint8_t* to, const Input* from) { quantise<kElement>(to, from, matrix.count, scale, stores); });
  }

  template <Element kElement, FloatElement Input>
  Function function_for(const Scales& scales);

#ifdef MULTIKV_HAS_SIMD
  template <FloatElement Input, class Encode>
  [[gnu::always_inline]] static void encode_rows(const Encode& encode, char* to, const char* from, const Matrix& matrix,
                                                 Stores stores) {
    const bool has_whole_steps = matrix.count % static_cast<int64_t>(sizeof(Bytes)) == 0;
    if (has_whole_steps && stores == Stores::kOrdinary) {
      encode_whole_steps<Input>(encode, to, from, matrix, store);
    } else if (has_whole_steps && matrix.writes_whole_cache_lines(to)) {
      encode_whole_steps<Input>(encode, to, from, matrix, stream);
    } else {
      for_rows<Input>(to, from, matrix, [&] [[gnu::always_inline]] (uint8_t* to, const Input* from) {
        convert_with(encode, to, from, matrix.count, stores, matrix.next(from));
      });
    }
  }

  // Encodes rows without the tests for unaligned first and last steps, which take a third of the time of a row of 128
  // elements.
  template <FloatElement Input, class Encode, class Put>
    requires(requires(const Put& put, void* to, Bytes value) { put(to, value); })
  [[gnu::always_inline]] static void encode_whole_steps(const Encode& encode, char* to, const char* from,
                                                        const Matrix& matrix, const Put& put) {
    constexpr int64_t kStep = sizeof(Bytes), kInputBytes = sizeof(Input);
    for_rows<Input>(to, from, matrix, [&] [[gnu::always_inline]] (uint8_t* to, const Input* from) {
      const NextInput next(from, matrix.next(from));
      for (int64_t i = 0; i < matrix.count; i += kStep) {
        next.prefetch(i * kInputBytes, kStep * kInputBytes);
        put(to + i, encode(from + i).data[0]);
      }
    });
  }

  template <Element kElement, FloatElement Input, int kSteps>
  static void with_encoder(const Quantiser&, char* to, const char* from, const Matrix& matrix, float scale,
                           Stores stores) {
    encode_rows<Input>(Encoder<kElement, Input, kSteps>(scale), to, from, matrix, stores);
  }

  // An op with at least this many elements uses tables. This is 8 times the number of elements from which on tables
  // save more time than it takes to fill them (docs/performance_cpu.md).
  static constexpr int64_t kManyElements = 32768;

  template <Element kElement>
  static void with_tables(const Quantiser& self, char* to, const char* from, const Matrix& matrix, float scale,
                          Stores stores) {
    const TableEncoder<kElement> encode(self.tables_);
    encode_rows<BFloat16>(encode, to, from, matrix, stores);
    if (encode.has_seen_nan()) {
      finish(stores);  // the wrong codes must reach memory before the right ones
      with_encoder<kElement, BFloat16, 1>(self, to, from, matrix, scale, stores);
    }
  }

  EncoderTables tables_;
#endif
  Function function_ = nullptr;
};

template <Element kElement, FloatElement Input>
Quantiser::Function Quantiser::function_for([[maybe_unused]] const Scales& scales) {
#ifdef MULTIKV_HAS_SIMD
  constexpr int kBits = kSignificantBits<Input>;
  bool suffices = kBits < 24;
  for (int64_t i = 0; i < scales.num_scales; ++i) {
    const float scale = scales.data[i * scales.stride];
    if (!encoder_takes(scale)) return with_any_scale<kElement, Input>;
    if constexpr (kBits < 24) suffices = suffices && estimate_suffices<kBits>(scale);
  }
  if constexpr (std::same_as<Input, BFloat16>) {
    if (scales.num_scales == 1 && scales.num_elements >= kManyElements &&
        make_tables<kElement>(tables_, *scales.data)) {
      return with_tables<kElement>;
    }
  }
  if constexpr (kBits == 24) return with_encoder<kElement, Input, 1>;
  else return suffices ? with_encoder<kElement, Input, 0> : with_encoder<kElement, Input, 1>;
#else
  return with_any_scale<kElement, Input>;
#endif
}

inline Quantiser::Quantiser(Element element, Float dtype, const Scales& scales) {
  if (!is_fp8(element)) return;
  function_ = with_fp8(element, [&]<Element kElement>() {
    return with_float(dtype, [&]<FloatElement Input>() { return function_for<kElement, Input>(scales); });
  });
}

}  // namespace
}  // namespace multikv::cpu
