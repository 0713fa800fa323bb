#include "frontend/check/rope.h"

#include "frontend/check/formats.h"
#include "frontend/check/shapes.h"

namespace multikv {

Float check_table(Call& call, const Tensor& cos_sin_cache, const RotatedPart& part) {
  check_device_and_dim(call, "cos_sin_cache", cos_sin_cache, 2);
  const Float dtype = float_dtype(call, "cos_sin_cache", cos_sin_cache);
  check_inner_stride(call, "cos_sin_cache", cos_sin_cache);
  const int64_t rotary_size = cos_sin_cache.size(1);
  if (rotary_size % 2 != 0) call.fail("cos_sin_cache", "an even size in dimension 1", shape_text(cos_sin_cache));
  check_at_least(call, "rotary_offset", part.offset, 0);
  if (rotary_size > part.head_size) {
    call.fail("cos_sin_cache", join({"at most ", text(part.head_size), " (", part.of, ") in dimension 1"}),
              shape_text(cos_sin_cache));
  }
  const int64_t last = part.head_size - rotary_size;
  if (part.offset > last) {
    call.fail("rotary_offset", join({"at most ", text(last), " (", part.of, " minus size of cos_sin_cache)"}),
              text(part.offset));
  }
  return dtype;
}

void check_table_dtype(const Call& call, const Tensor& cos_sin_cache, const Tensor& like, std::string_view like_name) {
  if (cos_sin_cache.dtype() == Dtype::kFloat32 || cos_sin_cache.dtype() == like.dtype()) return;
  const std::string_view other = like.dtype() == Dtype::kFloat32 ? "" : ", or float32";
  call.fail("cos_sin_cache", join({"dtype ", dtype_text(like), " like ", like_name, other}), dtype_text(cos_sin_cache));
}

}  // namespace multikv
