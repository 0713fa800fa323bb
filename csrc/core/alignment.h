// The alignment of tensors, which decides how wide vector accesses may be.
#pragma once

#include <cstdint>

namespace multikv {

// The bitwise or of addresses, strides and sizes in bytes. A power of two divides all of them if and only if it
// divides their bitwise or.
class AlignmentBits {
 public:
  AlignmentBits() = default;
  explicit AlignmentBits(const void* address) : bits_(reinterpret_cast<uintptr_t>(address)) {}
  constexpr explicit AlignmentBits(int64_t bytes) : bits_(static_cast<uint64_t>(bytes)) {}

  constexpr AlignmentBits operator|(AlignmentBits other) const {
    return AlignmentBits(static_cast<int64_t>(bits_ | other.bits_));
  }
  constexpr AlignmentBits operator|(int64_t bytes) const { return *this | AlignmentBits(bytes); }

  // The largest power of two that divides all joined values and is at most `most`, which is a power of two.
  constexpr int widest(int most) const {
    const uint64_t all = bits_ | static_cast<uint64_t>(most);
    return static_cast<int>(all & -all);
  }

 private:
  uint64_t bits_ = 0;
};

}  // namespace multikv
