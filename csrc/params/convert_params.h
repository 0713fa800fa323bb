// What the front end hands to a backend for the ops of family convert.
#pragma once

#include "core/format.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

struct ConvertFp8Params {
  const char* src;
  char* dst;
  StridedRows rows;  // in elements
  float scale;
  Float dtype;      // of the floating-point cache
  Element element;  // of the fp8 cache
  bool to_fp8;      // whether dst is the fp8 cache

  constexpr int64_t src_element_bytes() const { return to_fp8 ? num_bytes(dtype) : 1; }
  constexpr int64_t dst_element_bytes() const { return to_fp8 ? 1 : num_bytes(dtype); }
  // An item is an element.
  constexpr Work work() const { return {rows.num_elements(), src_element_bytes(), dst_element_bytes()}; }
};
static_assert(LaunchParams<ConvertFp8Params>);

}  // namespace multikv
