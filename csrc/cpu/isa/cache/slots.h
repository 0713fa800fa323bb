// Where the tokens of a cache write go.
#pragma once

#include "params/params.h"

namespace multikv::cpu {
namespace {

struct Place {
  int64_t block, offset;
};

inline Place place_of(const Slots& slots, int64_t slot) {
  constexpr auto kHighProduct = [](uint64_t a, uint64_t b) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
  };
  const auto block = static_cast<int64_t>(slots.block_size.divide(static_cast<uint64_t>(slot), kHighProduct));
  return {block, slot - block * static_cast<int64_t>(slots.block_size.value)};
}

// Calls body(token, block, offset) for the tokens [begin, end) that have a slot.
template <class Body>
inline void for_each_token(const Slots& slots, int64_t begin, int64_t end, const Body& body) {
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = slots.mapping.at(token);
    if (slot < 0) continue;
    const Place place = place_of(slots, slot);
    body(token, place.block, place.offset);
  }
}

// Calls body(token, count, block, offset) for runs of tokens whose slots follow each other within a block.
template <class Body>
inline void for_each_run(const Slots& slots, int64_t begin, int64_t end, const Body& body) {
  const auto block_size = static_cast<int64_t>(slots.block_size.value);
  for (int64_t token = begin; token < end;) {
    const int64_t slot = slots.mapping.at(token);
    if (slot < 0) {
      ++token;
      continue;
    }
    const Place place = place_of(slots, slot);
    const int64_t left = end - token < block_size - place.offset ? end - token : block_size - place.offset;
    int64_t count = 1;
    while (count < left && slots.mapping.at(token + count) == slot + count) ++count;
    body(token, count, place.block, place.offset);
    token += count;
  }
}

}  // namespace
}  // namespace multikv::cpu
