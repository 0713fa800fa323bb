// Division of 64-bit indices by a divisor that is constant within a call, such as the block size.
#pragma once

#include <cstdint>

namespace multikv {

// A divisor with its reciprocal, so that a division becomes a multiplication.
struct Divisor {
  uint64_t value;
  uint64_t reciprocal;  // floor((2^64 - 1) / value)

  static constexpr Divisor of(int64_t value) {
    const auto unsigned_value = static_cast<uint64_t>(value);
    return {unsigned_value, ~uint64_t{0} / unsigned_value};
  }

  constexpr int64_t signed_value() const { return static_cast<int64_t>(value); }

  // Returns x / value. `high_product(a, b)` returns the upper 64 bits of a * b; it is an argument, because every
  // compiler has its own intrinsic for it. For every x, `estimate` is the quotient or the quotient minus 1.
  template <class HighProduct>
  constexpr uint64_t divide(uint64_t x, HighProduct high_product) const {
    const uint64_t estimate = high_product(x, reciprocal);
    return estimate + (x - estimate * value >= value);
  }
};

}  // namespace multikv
