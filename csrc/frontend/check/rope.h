// Checks of tables of rotary position embedding.
#pragma once

#include "frontend/check/call.h"

namespace multikv {

// The part of a head that is rotated. It starts at element `offset` of a head of head_size elements. Error messages say
// with the text `of` what head_size is.
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
