// The widest vector of the instruction set that a file is compiled for.
//
// Everything in csrc/cpu/isa except run() is in an anonymous namespace. These files are compiled once per instruction
// set. If two objects defined the same weak symbol, the linker would keep one copy of it, possibly one with
// instructions that the CPU lacks.
#pragma once

#if defined(__SSE2__)
// GCC 12 warns about its own header, in which a deliberately undefined vector looks uninitialised.
#pragma GCC diagnostic push
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include <cstdint>
#include <cstring>

#include "cpu/kernels.h"

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
struct Bytes {
  uint64_t words[2];
};
inline void stream(void* to, Bytes value) { std::memcpy(to, &value, sizeof value); }
#endif

constexpr int64_t kCacheLine = 64;

// `bits` is the bitwise or of addresses, sizes and strides. Returns true if each of them is a multiple of a cache line.
inline bool are_whole_cache_lines(int64_t bits) { return (bits & (kCacheLine - 1)) == 0; }

inline Bytes load(const void* from) {
  Bytes value;
  std::memcpy(&value, from, sizeof value);
  return value;
}
inline void store(void* to, Bytes value) { std::memcpy(to, &value, sizeof value); }

// A function from vectors to vectors.
template <class Map>
concept VectorMap = requires(const Map& map, Bytes x) { x = map(x); };

// Orders streaming stores before all later stores. A kernel that used streaming stores calls this at its end.
inline void finish(Stores stores) {
#if defined(__SSE2__)
  if (stores == Stores::kStreaming) _mm_sfence();
#else
  (void)stores;
#endif
}

// While an object of this class exists, the calling thread computes with subnormal numbers as IEEE 754 defines,
// whatever torch.set_flush_denormal has set for it. On CPUs other than x86 the class has no effect.
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
