// Checks of dtypes, cache formats and scales.
#pragma once

#include "frontend/check/call.h"
#include "frontend/torch/format_name.h"

namespace multikv {

// Fails unless the tensor has this dtype. `like` is the argument that the error's text names for having it.
void check_dtype(const Call& call, std::string_view argument, const Tensor& tensor, Dtype dtype,
                 std::string_view like = "");
// Fails unless two tensors have the same dtype, which may be any dtype of torch. `like` is the name of `other`.
void check_same_dtype(const Call& call, std::string_view argument, const Tensor& tensor, const Tensor& other,
                      std::string_view like);
// The dtype of a tensor of floats.
Float float_dtype(const Call& call, std::string_view argument, const Tensor& tensor);

// The row of kCacheFormats that kv_cache_dtype means to a family of ops.
const CacheFormat& cache_format(const Call& call, const FormatName& kv_cache_dtype, FormatFamily family);

// The codec of a cache in this format, whose elements come from floats of `dtype` or are read as such floats. `of` is
// the argument that has this dtype. Checks the dtype of the cache, too.
Codec cache_codec(const Call& call, const CacheFormat& format, std::string_view argument, const Tensor& cache,
                  Float dtype, std::string_view of = "the input");

// The parts of cache_codec(), for ops that need only one of them:

// Fails unless a format of floats is `auto` or names `dtype` itself.
void check_float_format(const Call& call, const CacheFormat& format, Float dtype, std::string_view of);
// The element of an fp8 format in a cache whose dtype does not identify it.
Element fp8_element_of_bytes(const Call& call, const CacheFormat& format);
// The element of an fp8 format in a cache whose dtype is uint8 or the fp8 dtype itself.
Element fp8_element(const Call& call, const CacheFormat& format, std::string_view argument, const Tensor& cache);
// The element of a cache of e4m3fn or e4m3fnuz, whose dtype is uint8 or the fp8 dtype itself.
Element e4m3_element(const Call& call, std::string_view argument, const Tensor& cache);
// Sets the element of a codec from kCacheFormats.
constexpr Codec with_element(Codec codec, Element element) {
  codec.element = element;
  return codec;
}

// The address of an fp8 scale, a float32 tensor of one element.
const float* scale_data(Call& call, std::string_view argument, const Tensor& scale);
// The stride of a float32 tensor of fp8 scales, in elements: 0 if it has one element, 1 if it has one for each head.
int64_t scale_stride(Call& call, std::string_view argument, const Tensor& scale, int64_t num_heads);

}  // namespace multikv
