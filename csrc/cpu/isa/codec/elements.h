// The types of the elements that tensors of floats hold, and conversions of single elements.
#pragma once

#include <concepts>

#include "core/float16.h"
#include "core/format.h"

namespace multikv::cpu {
namespace {

struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
concept FloatOf16Bits = std::same_as<T, Float16> || std::same_as<T, BFloat16>;

template <class T>
concept FloatElement = std::same_as<T, float> || FloatOf16Bits<T>;

// The number of significant bits: the stored mantissa bits and the leading one, which is not stored.
template <FloatElement T>
constexpr int kSignificantBits = std::same_as<T, float>     ? 24
                                 : std::same_as<T, Float16> ? 11
                                                            : 8;

inline float widen(float x) { return x; }
inline float widen(Float16 x) { return float_from_half(x.bits); }
inline float widen(BFloat16 x) { return float_from_bfloat16(x.bits); }

// Rounds to nearest even.
template <FloatElement Output> Output narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline Float16 narrow<Float16>(float x) { return {half_from_float(x)}; }
template <> inline BFloat16 narrow<BFloat16>(float x) { return {bfloat16_from_float(x)}; }

// Calls with<T>() for the type T of a dtype that is known at run time.
template <class With>
decltype(auto) with_float(Float dtype, With with) {
  switch (dtype) {
    case Float::kFloat32: return with.template operator()<float>();
    case Float::kFloat16: return with.template operator()<Float16>();
    case Float::kBFloat16: break;
  }
  return with.template operator()<BFloat16>();
}

constexpr bool is_e4m3(Element element) { return element == Element::kE4M3FN || element == Element::kE4M3FNUZ; }

// Calls with<kElement>() for one of the two e4m3 elements.
template <class With>
decltype(auto) with_e4m3(Element element, With with) {
  if (element == Element::kE4M3FNUZ) return with.template operator()<Element::kE4M3FNUZ>();
  return with.template operator()<Element::kE4M3FN>();
}

}  // namespace
}  // namespace multikv::cpu
