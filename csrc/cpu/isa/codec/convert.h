// Converts arrays of floats to fp8 codes, and back.
#pragma once

#include "core/quotient.h"
#include "cpu/isa/codec/decode.h"
#include "cpu/isa/codec/encode.h"
#include "cpu/isa/codec/vector_loop.h"

namespace multikv::cpu {
namespace {

// Divides elements by one scale. With fused multiply-add in hardware, multiplying by the reciprocal and correcting the
// product (core/quotient.h) is faster than a division. The fp8 codes of both results are the same.
template <FloatElement Input>
struct Divider {
#if defined(__FMA__)
  Quotient quotient;
  explicit Divider(float scale) : quotient(scale) {}
  float operator()(float x) const {
    return quotient.divide(x, [](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
  }
#else
  float scale;
  explicit Divider(float scale) : scale(scale) {}
  float operator()(float x) const { return x / scale; }
#endif
};

// quantise_in_chunks() and dequantise_in_chunks() convert this many elements at a time. They make several passes over
// such a chunk, and each pass is a loop that the compiler vectorises.
constexpr int64_t kChunk = 256;

// Does what quantise() does, for every scale, and also where MULTIKV_HAS_SIMD is not defined.
template <Element kElement, FloatElement Input>
void quantise_in_chunks(uint8_t* to, const Input* from, int64_t count, float scale, Stores stores) {
  constexpr Fp8Layout kLayout = layout_of(kElement);
  alignas(64) float quotients[kChunk];
  alignas(64) uint8_t codes[kChunk];
  const Divider<Input> divider(scale);
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t length = count - begin < kChunk ? count - begin : kChunk;
    for (int64_t i = 0; i < length; ++i) quotients[i] = divider(widen(from[begin + i]));
    for (int64_t i = 0; i < length; ++i) codes[i] = encode_fp8(quotients[i], kLayout);
    copy(reinterpret_cast<char*>(to + begin), reinterpret_cast<const char*>(codes), length, stores);
  }
}

// to[i] = fp8(from[i] / scale).
template <Element kElement, FloatElement Input>
void quantise(uint8_t* to, const Input* from, int64_t count, float scale, Stores stores) {
#ifdef MULTIKV_HAS_SIMD
  if (encoder_takes(scale)) {
    if constexpr (std::same_as<Input, float>) {
      convert_with(Encoder<kElement, float, 1>(scale), to, from, count, stores);
    } else if (estimate_suffices<kSignificantBits<Input>>(scale)) {
      convert_with(Encoder<kElement, Input, 0>(scale), to, from, count, stores);
    } else {
      convert_with(Encoder<kElement, Input, 1>(scale), to, from, count, stores);
    }
    return;
  }
#endif
  quantise_in_chunks<kElement>(to, from, count, scale, stores);
}

// Does what dequantise() does, for every scale, and also where MULTIKV_HAS_SIMD is not defined.
template <Element kElement, FloatElement Output>
void dequantise_in_chunks(Output* to, const uint8_t* from, int64_t count, float scale, Stores stores) {
  constexpr Fp8Layout kLayout = layout_of(kElement);
  alignas(64) float products[kChunk];
  alignas(64) Output outputs[kChunk];
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t length = count - begin < kChunk ? count - begin : kChunk;
    for (int64_t i = 0; i < length; ++i) products[i] = decode_fp8(from[begin + i], kLayout) * scale;
    for (int64_t i = 0; i < length; ++i) outputs[i] = narrow<Output>(products[i]);
    copy(reinterpret_cast<char*>(to + begin), reinterpret_cast<const char*>(outputs),
         length * static_cast<int64_t>(sizeof(Output)), stores);
  }
}

// Calls with(dequantise_row). dequantise_row(to, from, count, stores, next) dequantises contiguous elements: to[i] =
// narrow<Output>(float32(from[i]) * scale). `next`: see copy(). Rows with one scale share a dequantise_row, because its
// tables take longer to make than a short row takes to dequantise.
template <Element kElement, FloatElement Output, class With>
void with_dequantiser(float scale, const With& with) {
#ifdef MULTIKV_HAS_SIMD
  const auto with_decoder = [&](const auto& decode) {
    with([&](Output* to, const uint8_t* from, int64_t count, Stores stores, const char* next) {
      convert_with(decode, to, from, count, stores, next);
    });
  };
  if constexpr (std::same_as<Output, BFloat16> && is_e4m3(kElement)) {
    using Decode = BFloat16Decoder<kElement>;
    if (Decode::takes(scale)) return with_decoder(Decode(scale));
  }
  using Decode = Decoder<kElement, Output>;
  if (Decode::takes(scale)) return with_decoder(Decode(scale));
#endif
  with([scale](Output* to, const uint8_t* from, int64_t count, Stores stores, const char*) {
    dequantise_in_chunks<kElement>(to, from, count, scale, stores);
  });
}

// Dequantises contiguous elements.
template <Element kElement, FloatElement Output>
void dequantise(Output* to, const uint8_t* from, int64_t count, float scale, Stores stores) {
  with_dequantiser<kElement, Output>(
      scale, [&](const auto& dequantise_row) { dequantise_row(to, from, count, stores, nullptr); });
}

}  // namespace
}  // namespace multikv::cpu
