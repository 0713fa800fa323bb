// Where estimate_suffices says that a quotient needs no correction, all codes without a correction are those with one:
// for every significand of a scale, or every n-th with the argument n, and every significand of a number. Powers of two
// only shift both, up to subnormal codes; numbers of these exponents have codes of all kinds. Exit code 0: no
// difference.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/isa/codec/convert.h"

namespace {

using namespace multikv;
using namespace multikv::cpu;

constexpr Element kElement = Element::kE4M3FN;

template <int kSteps, FloatElement Input>
void encode(std::vector<uint8_t>& codes, const std::vector<Input>& numbers, float scale) {
  convert_with(Encoder<kElement, Input, kSteps>(scale), codes.data(), numbers.data(),
               static_cast<int64_t>(numbers.size()), Stores::kOrdinary);
}

template <FloatElement Input, int kSignificantBits>
void count(const char* name, uint32_t step) {
  std::vector<Input> numbers;
  for (uint32_t exponent = 127 - 11; exponent <= 127 - 5; ++exponent) {
    for (uint32_t m = 0; m < 1u << (kSignificantBits - 1); ++m) {
      const uint32_t bits = exponent << 23 | m << (24 - kSignificantBits);
      numbers.push_back(narrow<Input>(std::bit_cast<float>(bits)));
    }
  }
  std::vector<uint8_t> estimated(numbers.size()), corrected(numbers.size());
  long num_sufficient = 0, num_wrong = 0;
  for (uint32_t m = 0; m < 1u << 23; m += step) {
    const float scale = std::bit_cast<float>(0x3f800000u | m);
    if (!estimate_suffices<kSignificantBits>(scale)) continue;
    ++num_sufficient;
    encode<0>(estimated, numbers, scale);
    encode<1>(corrected, numbers, scale);
    num_wrong += estimated != corrected;
  }
  std::printf("%s: suffices for %ld of 2^23 scales, wrong for %ld\n", name, num_sufficient, num_wrong);
  if (num_wrong != 0) std::exit(1);
}

}  // namespace

int main(int argc, char** argv) {
  const auto step = static_cast<uint32_t>(argc > 1 ? std::atoi(argv[1]) : 1);
  count<BFloat16, 8>("bfloat16", step);
  count<Float16, 11>("float16", step);
}
