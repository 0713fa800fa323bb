// Arrays of numbers from one format to another.
#pragma once

#include <type_traits>

#include "core/quotient.h"
#include "cpu/isa/codec/decode.h"
#include "cpu/isa/codec/encode.h"
#include "cpu/isa/codec/numbers.h"

namespace multikv::cpu {
namespace {

#ifdef MULTIKV_HAS_LANES

// Writes `count` >= sizeof(Bytes) outputs, sizeof(Bytes) of them at a time: convert(from) gives those of as many
// inputs.
template <class Convert, class Output, class Input>
void convert_in_steps(const Convert& convert, Output* to, const Input* from, int64_t count, Stores stores,
                      const char* next) {
  constexpr int64_t kStep = sizeof(Bytes);
  constexpr int64_t kInputBytes = sizeof(Input);
  constexpr int kVectors = sizeof(Output);
  const Ahead ahead(from, next);
  const auto put = [&] [[gnu::always_inline]] (int64_t i) {
    const Vectors<kVectors> vectors = convert(from + i);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(reinterpret_cast<char*>(to + i) + j * sizeof(Bytes), vectors.data[j]);
  };
  constexpr int64_t kOutputBytes = sizeof(Output);
  const int64_t unaligned = -reinterpret_cast<intptr_t>(to) & (kStep - 1);
  int64_t i = 0;
  if (stores == Stores::kStreaming && is_worth_streaming(to, count * kOutputBytes) && unaligned % kOutputBytes == 0) {
    if (unaligned != 0) put(0);
    i = unaligned / kOutputBytes;
    for (; i + kStep <= count; i += kStep) {
      ahead.fetch(i * kInputBytes, kStep * kInputBytes);
      const Vectors<kVectors> vectors = convert(from + i);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) stream(reinterpret_cast<char*>(to + i) + j * sizeof(Bytes), vectors.data[j]);
    }
  } else {
    for (; i + kStep <= count; i += kStep) {
      ahead.fetch(i * kInputBytes, kStep * kInputBytes);
      put(i);
    }
  }
  // The last vectors overlap what is written already, with the same bytes.
  if (i < count) put(count - kStep);
}

// The same for any count: a few numbers go through a buffer.
template <class Convert, class Output, class Input>
void convert_with(const Convert& convert, Output* to, const Input* from, int64_t count, Stores stores,
                  const char* next = nullptr) {
  constexpr int64_t kStep = sizeof(Bytes);
  if (count >= kStep) {
    convert_in_steps(convert, to, from, count, stores, next);
    return;
  }
  Input inputs[kStep] = {};
  std::memcpy(inputs, from, count * sizeof(Input));
  const auto vectors = convert(inputs);
  std::memcpy(to, &vectors, count * sizeof(Output));
}

// Scales for which no step of an Encoder underflows or overflows. (NaN is none of them.)
inline bool encoder_takes(float scale) { return scale >= 0x1p-40f && scale <= 0x1p40f; }

#endif

// Division by one scale. Without fused multiply-add in hardware the plain division is the fast one; both give the
// same bytes.
template <class Input>
struct Divider {
#if defined(__FMA__)
  Quotient quotient;
  explicit Divider(float scale) : quotient(scale) {}
  float operator()(float x) const {
    constexpr int kSteps = sizeof(Input) == sizeof(float) ? 2 : 1;
    return quotient.divide<kSteps>(x, [](float a, float b, float c) { return __builtin_fmaf(a, b, c); });
  }
#else
  float scale;
  explicit Divider(float scale) : scale(scale) {}
  float operator()(float x) const { return x / scale; }
#endif
};

// to[i] = fp8(from[i] / scale).
template <CacheFormat kFormat, class Input>
void quantise(uint8_t* to, const Input* from, int64_t count, float scale, Stores stores) {
#ifdef MULTIKV_HAS_LANES
  if (encoder_takes(scale)) {
    if constexpr (std::is_same_v<Input, float>) {
      convert_with(Encoder<kFormat, float, 2>(scale), to, from, count, stores);
    } else if (estimate_suffices<std::is_same_v<Input, Half> ? 11 : 8>(scale)) {
      convert_with(Encoder<kFormat, Input, 0>(scale), to, from, count, stores);
    } else {
      convert_with(Encoder<kFormat, Input, 1>(scale), to, from, count, stores);
    }
    return;
  }
#endif
  // In steps, each a loop that the compiler turns into vector code.
  constexpr int64_t kChunk = 256;
  constexpr Fp8Layout kLayout = layout_of(kFormat);
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

// to[i] = narrow<Output>(float32(from[i]) * scale). `next`: what will be read after this; see Ahead.
template <CacheFormat kFormat, class Output>
void dequantise(Output* to, const uint8_t* from, int64_t count, float scale, Stores stores,
                [[maybe_unused]] const char* next = nullptr) {
  constexpr Fp8Layout kLayout = layout_of(kFormat);
#ifdef MULTIKV_HAS_LANES
  if constexpr (std::is_same_v<Output, BFloat16> && kLayout.mantissa_bits == 3) {
    using Decode = BFloat16Decoder<kFormat>;
    if (Decode::takes(scale)) return convert_with(Decode(scale), to, from, count, stores, next);
  }
  using Decode = Decoder<kFormat, Output>;
  if (Decode::takes(scale)) return convert_with(Decode(scale), to, from, count, stores, next);
#endif
  constexpr int64_t kChunk = 256;
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

}  // namespace
}  // namespace multikv::cpu
