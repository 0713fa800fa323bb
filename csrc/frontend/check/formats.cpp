#include "frontend/check/formats.h"

#include "frontend/check/shapes.h"

namespace multikv {

void check_dtype(const Call& call, std::string_view argument, const Tensor& tensor, Dtype dtype,
                 std::string_view like) {
  if (tensor.dtype() == dtype && dtype != Dtype::kOther) return;
  call.fail(argument, join({"dtype ", dtype_name(dtype), like.empty() ? "" : " like ", like}), dtype_text(tensor));
}

void check_same_dtype(const Call& call, std::string_view argument, const Tensor& tensor, const Tensor& other,
                      std::string_view like) {
  if (tensor.dtype_number() == other.dtype_number()) return;
  call.fail(argument, join({"dtype ", dtype_text(other), " like ", like}), dtype_text(tensor));
}

Float float_dtype(const Call& call, std::string_view argument, const Tensor& tensor) {
  for (const Float dtype : {Float::kFloat32, Float::kFloat16, Float::kBFloat16}) {
    if (tensor.dtype() == dtype_of(dtype)) return dtype;
  }
  call.fail(argument, "dtype float32, float16 or bfloat16", dtype_text(tensor));
}

const CacheFormat& cache_format(const Call& call, const FormatName& kv_cache_dtype, FormatFamily family) {
  const CacheFormat* format = kv_cache_dtype.find(family);
  if (format == nullptr) {
    call.fail("kv_cache_dtype", "one of " + format_names(family), join({"'", kv_cache_dtype.text(), "'"}));
  }
  return *format;
}

Codec cache_codec(const Call& call, const CacheFormat& format, std::string_view argument, const Tensor& cache,
                  Float dtype, std::string_view of) {
  if (!format.codec.is_float()) return with_element(format.codec, fp8_element(call, format, argument, cache));
  check_float_format(call, format, dtype, of);
  check_dtype(call, argument, cache, dtype_of(dtype), of);
  return float_codec(dtype);
}

void check_float_format(const Call& call, const CacheFormat& format, Float dtype, std::string_view of) {
  if (format.choice == ElementChoice::kInput || format.codec.element == element_of(dtype)) return;
  call.fail("kv_cache_dtype", join({"auto or ", dtype_name(dtype_of(dtype)), ", the dtype of ", of}), format.name);
}

Element fp8_element_of_bytes(const Call& call, const CacheFormat& format) {
  if (format.choice == ElementChoice::kFixed) return format.codec.element;
  return call.backend().e4m3_of_bytes(call.device_index());
}

Element fp8_element(const Call& call, const CacheFormat& format, std::string_view argument, const Tensor& cache) {
  if (format.choice == ElementChoice::kE4M3) return e4m3_element(call, argument, cache);
  const Element element = format.codec.element;
  if (cache.dtype() != Dtype::kUInt8 && cache.dtype() != dtype_of(element)) {
    call.fail(argument, "dtype uint8 or " + dtype_name(dtype_of(element)), dtype_text(cache));
  }
  return element;
}

Element e4m3_element(const Call& call, std::string_view argument, const Tensor& cache) {
  if (cache.dtype() == Dtype::kUInt8) return call.backend().e4m3_of_bytes(call.device_index());
  for (const Element element : {Element::kE4M3FN, Element::kE4M3FNUZ}) {
    if (cache.dtype() == dtype_of(element)) return element;
  }
  call.fail(argument, "dtype uint8, float8_e4m3fn or float8_e4m3fnuz", dtype_text(cache));
}

const float* scale_data(Call& call, std::string_view argument, const Tensor& scale) {
  call.check_device(argument, scale);
  check_dtype(call, argument, scale, Dtype::kFloat32);
  if (scale.numel() != 1) call.fail(argument, "1 element", shape_text(scale));
  return reinterpret_cast<const float*>(data(call, argument, scale));
}

int64_t scale_stride(Call& call, std::string_view argument, const Tensor& scale, int64_t num_heads) {
  call.check_device(argument, scale);
  check_dtype(call, argument, scale, Dtype::kFloat32);
  if (scale.numel() == 1) return 0;
  if (scale.dim() != 1 || scale.size(0) != num_heads) {
    call.fail(argument, join({"1 element or ", text(num_heads), " (one per head)"}), shape_text(scale));
  }
  check_inner_stride(call, argument, scale);
  return 1;
}

}  // namespace multikv
