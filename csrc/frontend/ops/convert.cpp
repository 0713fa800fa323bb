#include "frontend/check/formats.h"
#include "frontend/check/numbers.h"
#include "frontend/check/shapes.h"
#include "frontend/check/strided.h"
#include "params/convert_params.h"

namespace multikv {

namespace {

bool is_float(const Tensor& tensor) {
  return tensor.dtype() == Dtype::kFloat32 || tensor.dtype() == Dtype::kFloat16 || tensor.dtype() == Dtype::kBFloat16;
}

}  // namespace

ConvertFp8Params make_convert_fp8_params(Call& call, const MutableTensor& dst_cache, const Tensor& src_cache,
                                         double scale, const FormatName& kv_cache_dtype) {
  ConvertFp8Params p{};
  call.check_device("dst_cache", dst_cache);
  check_device_and_dim(call, "src_cache", src_cache, dst_cache.dim());
  for (int64_t d = 0; d < dst_cache.dim(); ++d) {
    check_size(call, "src_cache", src_cache, d, dst_cache.size(d), "size of dst_cache");
  }
  check_not_expanded(call, "dst_cache", dst_cache);
  const CacheFormat& format = cache_format(call, kv_cache_dtype, FormatFamily::kConvert);
  p.to_fp8 = !is_float(dst_cache);
  if (p.to_fp8) {
    p.element = fp8_element(call, format, "dst_cache", dst_cache);
    p.dtype = float_dtype(call, "src_cache", src_cache);
  } else {
    p.element = fp8_element(call, format, "src_cache", src_cache);
    p.dtype = float_dtype(call, "dst_cache", dst_cache);
  }
  p.scale = rounded_to_float(scale);
  if (dst_cache.numel() == 0) {
    call.set_nothing_to_do();
    return p;
  }
  p.rows = strided_rows(call, "src_cache", {src_cache}, {dst_cache}, 1);
  p.src = data(call, "src_cache", src_cache);
  p.dst = mutable_data(call, "dst_cache", dst_cache);
  return p;
}

}  // namespace multikv
