// Loops that convert the elements of arrays with vector operations.
#pragma once

#include "cpu/isa/codec/elements.h"
#include "cpu/isa/simd/copy.h"
#include "cpu/isa/simd/ops.h"

#ifdef MULTIKV_HAS_SIMD

namespace multikv::cpu {
namespace {

// convert(from) returns the outputs for the sizeof(Bytes) inputs at `from`, as sizeof(Output) vectors.
template <class Convert, class Output, class Input>
concept VectorConverter = requires(const Convert& convert, const Input* from) {
  { convert(from) } -> std::same_as<Vectors<sizeof(Output)>>;
};

// Converts count >= sizeof(Bytes) elements, sizeof(Bytes) in each step. `next`: see copy().
template <class Output, class Input, VectorConverter<Output, Input> Convert>
void convert_in_steps(const Convert& convert, Output* to, const Input* from, int64_t count, Stores stores,
                      const void* next) {
  constexpr int64_t kStep = sizeof(Bytes), kInputBytes = sizeof(Input), kOutputBytes = sizeof(Output);
  constexpr int kVectors = sizeof(Output);
  const NextInput next_input(from, next);
  const auto store_step = [&] [[gnu::always_inline]] (int64_t i) {
    const Vectors<kVectors> vectors = convert(from + i);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) store(reinterpret_cast<char*>(to + i) + j * sizeof(Bytes), vectors.data[j]);
  };
  const int64_t unaligned = -reinterpret_cast<intptr_t>(to) & (kStep - 1);
  int64_t i = 0;
  if (stores == Stores::kStreaming && is_worth_streaming(to, count * kOutputBytes) && unaligned % kOutputBytes == 0) {
    if (unaligned != 0) store_step(0);
    i = unaligned / kOutputBytes;
    for (; i + kStep <= count; i += kStep) {
      next_input.prefetch(i * kInputBytes, kStep * kInputBytes);
      const Vectors<kVectors> vectors = convert(from + i);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) stream(reinterpret_cast<char*>(to + i) + j * sizeof(Bytes), vectors.data[j]);
    }
  } else {
    for (; i + kStep <= count; i += kStep) {
      next_input.prefetch(i * kInputBytes, kStep * kInputBytes);
      store_step(i);
    }
  }
  // The last step overlaps the one before it and writes the same bytes there.
  if (i < count) store_step(count - kStep);
}

// Converts any number of elements. If there are fewer than sizeof(Bytes), they are converted in a buffer.
template <class Output, class Input, VectorConverter<Output, Input> Convert>
void convert_with(const Convert& convert, Output* to, const Input* from, int64_t count, Stores stores,
                  const void* next = nullptr) {
  constexpr int64_t kStep = sizeof(Bytes);
  if (count >= kStep) {
    convert_in_steps(convert, to, from, count, stores, next);
    return;
  }
  Input inputs[kStep] = {};
  std::memcpy(inputs, from, count * sizeof(Input));
  const auto vectors = convert(inputs);
  std::memcpy(to, &vectors, count * sizeof(Output));
}

}  // namespace
}  // namespace multikv::cpu

#endif
