// The shape of what a codec converts.
#pragma once

#include <cstdint>

namespace multikv::cpu {
namespace {

// Rows of `count` elements that are converted with one scale. Strides are in bytes.
struct Matrix {
  int64_t count, num_rows = 1, to_stride = 0, from_stride = 0;
  int64_t ahead = 0;  // distance in bytes from a source row to the address that is prefetched while the row is read
};

}  // namespace
}  // namespace multikv::cpu
