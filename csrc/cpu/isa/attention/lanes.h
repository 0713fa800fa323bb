// Sixteen virtual lanes of float32: the unit in which attention accumulates, on every instruction set.
//
// All instruction sets do the same IEEE operations in the same order, so they give the same bits. The lanes are summed
// in one tree: lane i is added to lane i + 8, then to lane i + 4, then to lane i + 2, then to lane i + 1. No operation
// is fused.
#pragma once

#include <type_traits>
#include <utility>

#include "cpu/attention.h"
#include "cpu/isa/simd/vec.h"

namespace multikv::cpu {
namespace {

constexpr int kLanes = AttentionSizes::kLanes;

using Quad [[gnu::vector_size(16)]] = float;
using Native [[gnu::vector_size(sizeof(Bytes))]] = float;
using NativeInts [[gnu::vector_size(sizeof(Bytes))]] = int32_t;
constexpr int kNativeLanes = sizeof(Bytes) / sizeof(float);
constexpr int kNatives = kLanes / kNativeLanes;

struct Lanes {
  Native v[kNatives];
};

// Calls visit(0), ..., visit(kCount - 1), each with a constant as its argument, so that arrays that are indexed with it
// stay in registers.
template <int kCount, class Visit>
[[gnu::always_inline]] inline void unrolled(const Visit& visit) {
  [&]<int... kIndex> [[gnu::always_inline]] (std::integer_sequence<int, kIndex...>) {
    (visit(std::integral_constant<int, kIndex>{}), ...);
  }(std::make_integer_sequence<int, kCount>{});
}

[[gnu::always_inline]] inline Native native(float x) { return x - Native{}; }
[[gnu::always_inline]] inline NativeInts native_ints(int32_t x) { return x - NativeInts{}; }

[[gnu::always_inline]] inline Lanes lanes(float x) {
  Lanes result;
  unrolled<kNatives>([&] [[gnu::always_inline]] (auto i) { result.v[i] = native(x); });
  return result;
}

// A Native in memory: at any address, and whatever the type of the elements there.
struct [[gnu::packed, gnu::may_alias]] StoredNative {
  Native value;
};

[[gnu::always_inline]] inline Lanes load_lanes(const void* from) {
  Lanes result;
  const auto* stored = static_cast<const StoredNative*>(from);
  unrolled<kNatives>([&] [[gnu::always_inline]] (auto i) { result.v[i] = stored[i].value; });
  return result;
}

[[gnu::always_inline]] inline void store_lanes(float* to, const Lanes& x) {
  auto* stored = reinterpret_cast<StoredNative*>(to);
  unrolled<kNatives>([&] [[gnu::always_inline]] (auto i) { stored[i].value = x.v[i]; });
}

// Applies a function of Natives to all lanes.
template <class Map, class... Args>
[[gnu::always_inline]] inline Lanes map_lanes(const Map& map, const Args&... args) {
  Lanes result;
  unrolled<kNatives>([&] [[gnu::always_inline]] (auto i) { result.v[i] = map(args.v[i]...); });
  return result;
}

// sum + a * b, rounded twice.
[[gnu::always_inline]] inline Lanes add_product(const Lanes& sum, const Lanes& a, const Lanes& b) {
  return map_lanes([](Native s, Native x, Native y) { return s + x * y; }, sum, a, b);
}

// The larger of two numbers; b where a is NaN.
[[gnu::always_inline]] inline Native larger_or_second(Native a, Native b) { return a > b ? a : b; }

// Combines lane i with lane i + 8, then with lane i + 4, so that four lanes are left.
template <class Combine>
[[gnu::always_inline]] inline Quad fold_to_quad(const Lanes& x, const Combine& combine) {
#if defined(__AVX512BW__)
  using Half [[gnu::vector_size(32)]] = float;
  const Native all = x.v[0];
  const Half half = combine(Half(__builtin_shufflevector(all, all, 0, 1, 2, 3, 4, 5, 6, 7)),
                            Half(__builtin_shufflevector(all, all, 8, 9, 10, 11, 12, 13, 14, 15)));
#elif defined(__AVX2__)
  const Native half = combine(x.v[0], x.v[1]);
#else
  return combine(combine(x.v[0], x.v[2]), combine(x.v[1], x.v[3]));
#endif
#if defined(__AVX2__)
  return combine(Quad(__builtin_shufflevector(half, half, 0, 1, 2, 3)),
                 Quad(__builtin_shufflevector(half, half, 4, 5, 6, 7)));
#endif
}

// Combines lane i with lane i + 2, then with lane i + 1, for four vectors at a time. Element k of the result is that of
// vector k.
template <class Combine>
[[gnu::always_inline]] inline Quad fold_quads(Quad a, Quad b, Quad c, Quad d, const Combine& combine) {
  const Quad ab =
      combine(Quad(__builtin_shufflevector(a, b, 0, 4, 1, 5)), Quad(__builtin_shufflevector(a, b, 2, 6, 3, 7)));
  const Quad cd =
      combine(Quad(__builtin_shufflevector(c, d, 0, 4, 1, 5)), Quad(__builtin_shufflevector(c, d, 2, 6, 3, 7)));
  return combine(Quad(__builtin_shufflevector(ab, cd, 0, 1, 4, 5)), Quad(__builtin_shufflevector(ab, cd, 2, 3, 6, 7)));
}

struct Add {
  template <class T>
  [[gnu::always_inline]] T operator()(T a, T b) const {
    return a + b;
  }
};
struct Larger {
  template <class T>
  [[gnu::always_inline]] T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// The sums over the lanes of four vectors.
[[gnu::always_inline]] inline Quad sums(const Lanes& a, const Lanes& b, const Lanes& c, const Lanes& d) {
  const Add add;
  return fold_quads(fold_to_quad(a, add), fold_to_quad(b, add), fold_to_quad(c, add), fold_to_quad(d, add), add);
}

template <class Combine>
inline float fold(const Lanes& x, const Combine& combine) {
  const Quad quad = fold_to_quad(x, combine);
  return fold_quads(quad, quad, quad, quad, combine)[0];
}

}  // namespace
}  // namespace multikv::cpu
