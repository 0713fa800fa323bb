#include "frontend/check/numbers.h"

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>

namespace multikv {

// A subnormal result is computed as an integer bit pattern, because the caller's thread may flush subnormal numbers to
// zero.
float rounded_to_float(double number) {
  if (!(std::fabs(number) < std::numeric_limits<float>::min())) return static_cast<float>(number);
  const auto bits = static_cast<uint32_t>(std::nearbyint(std::fabs(number) * 0x1p149));
  return std::bit_cast<float>(bits | (std::signbit(number) ? 0x80000000u : 0u));
}

std::string number_text(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", number);
  return text;
}

}  // namespace multikv
