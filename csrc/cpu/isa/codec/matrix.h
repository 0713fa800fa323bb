// The shape of what a codec converts.
#pragma once

#include <cstdint>

#include "cpu/isa/simd/copy.h"

namespace multikv::cpu {
namespace {

// Rows of `count` elements that are converted with one scale. Strides are in bytes.
struct Matrix {
  int64_t count, num_rows = 1, to_stride = 0, from_stride = 0;
  // The distance in bytes from a source row to the address that is prefetched while the row is read. 0: the address is
  // unknown (next() returns nullptr).
  int64_t ahead = 0;

  bool writes_whole_cache_lines(const char* to) const {
    return are_whole_cache_lines(reinterpret_cast<intptr_t>(to) | count | to_stride);
  }
  const char* next(const void* from) const { return ahead == 0 ? nullptr : static_cast<const char*>(from) + ahead; }
};

}  // namespace
}  // namespace multikv::cpu
