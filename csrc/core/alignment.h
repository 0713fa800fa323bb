// How wide the accesses to a tensor may be.
#pragma once

#include <cstdint>

namespace multikv {

// Addresses, strides and sizes in bytes, joined by a bitwise or: a power of two divides all of them if it divides this.
class AlignmentBits {
 public:
  AlignmentBits() = default;
  explicit AlignmentBits(const void* address) : bits_(reinterpret_cast<uintptr_t>(address)) {}
  constexpr explicit AlignmentBits(int64_t bytes) : bits_(static_cast<uint64_t>(bytes)) {}

  constexpr AlignmentBits operator|(AlignmentBits other) const {
    return AlignmentBits(static_cast<int64_t>(bits_ | other.bits_));
  }
  constexpr AlignmentBits operator|(int64_t bytes) const { return *this | AlignmentBits(bytes); }

  // The widest power of two up to `most`, itself a power of two, that divides everything that was joined.
  constexpr int widest(int most) const {
    const uint64_t all = bits_ | static_cast<uint64_t>(most);
    return static_cast<int>(all & -all);
  }

 private:
  uint64_t bits_ = 0;
};

}  // namespace multikv
