// Loops over the tokens of a cache write and their slots, token by token or in runs of tokens with consecutive slots.
#pragma once

#include <concepts>

#include "core/slots.h"

namespace multikv::cpu {
namespace {

// Returns x / divisor.
constexpr auto kQuotient = [](uint64_t x, const Divisor& divisor) {
  return divisor.divide(
      x, [](uint64_t a, uint64_t b) { return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64); });
};

inline BlockOffset split_slot(const Blocks& blocks, int64_t slot) {
  const auto block = static_cast<int64_t>(kQuotient(static_cast<uint64_t>(slot), blocks.block_size));
  return {block, slot - block * blocks.block_size.signed_value()};
}

// Calls body(token, at) for each token of [begin, end) whose slot is not negative.
template <std::invocable<int64_t, BlockOffset> Body>
inline void for_each_token(const Slots& slots, const Blocks& blocks, int64_t begin, int64_t end, const Body& body) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = slots.mapping.at(token);
    if (slot < 0) continue;
    body(token, split_slot(blocks, slot));
  }
}

// The tokens token, token + 1, ..., whose slots are consecutive in one block. The slot of the first token is `at`.
struct TokenRun {
  int64_t token, count;
  BlockOffset at;
};

// Calls body(run) for each run of the tokens [begin, end). Tokens with negative slots are in no run.
template <std::invocable<const TokenRun&> Body>
inline void for_each_run(const Slots& slots, const Blocks& blocks, int64_t begin, int64_t end, const Body& body) {
  const int64_t block_size = blocks.block_size.signed_value();
  for (int64_t token = begin; token < end;) {
    const int64_t slot = slots.mapping.at(token);
    if (slot < 0) {
      ++token;
      continue;
    }
    const BlockOffset at = split_slot(blocks, slot);
    const int64_t left = end - token < block_size - at.offset ? end - token : block_size - at.offset;
    int64_t count = 1;
    while (count < left && slots.mapping.at(token + count) == slot + count) ++count;
    body(TokenRun{token, count, at});
    token += count;
  }
}

}  // namespace
}  // namespace multikv::cpu
