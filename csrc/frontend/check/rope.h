// Checks of tables of rotary position embedding.
#pragma once

#include "frontend/check/call.h"

namespace multikv {

// The part of a head that is rotated, and the head; `of` says what head_size is, for the error messages.
struct RotatedPart {
  int64_t offset, head_size;
  std::string_view of;
};

// Checks a table [positions, rotary_size] of float32, float16 or bfloat16, and that the rotated part lies in the head.
// Returns the dtype.
Float check_table(Call& call, const Tensor& cos_sin_cache, const RotatedPart& part);
// Fails unless the table has the dtype of the tensor `like`, or float32.
void check_table_dtype(const Call& call, const Tensor& cos_sin_cache, const Tensor& like, std::string_view like_name);

}  // namespace multikv
