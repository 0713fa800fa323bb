// The few vector operations that kernels are written in, at the width this file is compiled for.
//
// Everything here is in an anonymous namespace: a symbol that two instruction sets shared could run on the wrong CPU.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>

#include "../../fp8.h"
#include "../../quotient.h"
#include "../kernels.h"

namespace multikv::cpu {
namespace {

#if defined(__AVX512BW__)
constexpr Isa kIsa = Isa::kAvx512;
using Bytes = __m512i;
inline void stream(void* to, Bytes value) { _mm512_stream_si512(static_cast<Bytes*>(to), value); }
#elif defined(__AVX2__)
constexpr Isa kIsa = Isa::kAvx2;
using Bytes = __m256i;
inline void stream(void* to, Bytes value) { _mm256_stream_si256(static_cast<Bytes*>(to), value); }
#elif defined(__SSE2__)
constexpr Isa kIsa = Isa::kBaseline;
using Bytes = __m128i;
inline void stream(void* to, Bytes value) { _mm_stream_si128(static_cast<Bytes*>(to), value); }
#else
constexpr Isa kIsa = Isa::kBaseline;
struct Bytes { uint64_t words[2]; };
inline void stream(void* to, Bytes value) { std::memcpy(to, &value, sizeof value); }
#endif

inline Bytes load(const void* from) {
  Bytes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(void* to, Bytes value) { std::memcpy(to, &value, sizeof value); }

// Streaming stores are not ordered with others: a kernel that used them ends with this.
inline void finish(Stores stores) {
#if defined(__SSE2__)
  if (stores == Stores::kStreaming) _mm_sfence();
#else
  (void)stores;
#endif
}

inline void copy(char* to, const char* from, int64_t num_bytes, Stores stores) {
  constexpr int64_t kWidth = sizeof(Bytes);
  if (num_bytes < kWidth) {
    std::memcpy(to, from, num_bytes);
    return;
  }
  int64_t i = 0;
  if (stores == Stores::kStreaming && num_bytes >= 4 * kWidth) {
    const int64_t unaligned = -reinterpret_cast<intptr_t>(to) & (kWidth - 1);
    if (unaligned != 0) store(to, load(from));
    i = unaligned;
    for (; i + 4 * kWidth <= num_bytes; i += 4 * kWidth) {
      const Bytes a = load(from + i), b = load(from + i + kWidth);
      const Bytes c = load(from + i + 2 * kWidth), d = load(from + i + 3 * kWidth);
      stream(to + i, a);
      stream(to + i + kWidth, b);
      stream(to + i + 2 * kWidth, c);
      stream(to + i + 3 * kWidth, d);
    }
    for (; i + kWidth <= num_bytes; i += kWidth) stream(to + i, load(from + i));
  } else {
    for (; i + kWidth <= num_bytes; i += kWidth) store(to + i, load(from + i));
  }
  // The last vector overlaps what is written already, with the same bytes.
  if (i < num_bytes) store(to + num_bytes - kWidth, load(from + num_bytes - kWidth));
}

inline float widen(float x) { return x; }
struct Half { uint16_t bits; };
struct BFloat16 { uint16_t bits; };
inline float widen(Half x) { return float_from_half(x.bits); }
inline float widen(BFloat16 x) { return float_from_bfloat16(x.bits); }

// Division by one scale. Without fused multiply-add in hardware the plain division is the fast one; both give the same bytes.
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

// to[i] = fp8(from[i] / scale). In steps, each a loop that the compiler turns into vector code.
template <CacheFormat kFormat, class Input>
void quantise(uint8_t* to, const Input* from, int64_t count, float scale, Stores stores) {
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

// Subnormal numbers count as themselves, whatever the caller's thread has set (torch.set_flush_denormal).
class IeeeSubnormals {
 public:
#if defined(__SSE2__)
  IeeeSubnormals() : previous_(_mm_getcsr()) { _mm_setcsr(previous_ & ~kFlushAndDenormalsAreZero); }
  ~IeeeSubnormals() { _mm_setcsr(previous_); }

 private:
  static constexpr unsigned kFlushAndDenormalsAreZero = 0x8040;
  unsigned previous_;
#endif
};

}  // namespace
}  // namespace multikv::cpu
