// The types of numbers that tensors hold, one at a time.
#pragma once

#include "core/float16.h"

namespace multikv::cpu {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

inline float widen(float x) { return x; }
inline float widen(Half x) { return float_from_half(x.bits); }
inline float widen(BFloat16 x) { return float_from_bfloat16(x.bits); }

// Rounds to nearest even. narrow<Half>(x).
template <class Output> Output narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline Half narrow<Half>(float x) { return {half_from_float(x)}; }
template <> inline BFloat16 narrow<BFloat16>(float x) { return {bfloat16_from_float(x)}; }

}  // namespace
}  // namespace multikv::cpu
