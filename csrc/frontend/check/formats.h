// Checks of dtypes, cache formats and scales.
#pragma once

#include "frontend/check/call.h"
#include "frontend/torch/format_name.h"

namespace multikv {

// Fails unless the tensor has this dtype. `like` names another argument that has it, for the error message: "expected
// dtype float16 like key".
void check_dtype(const Call& call, std::string_view argument, const Tensor& tensor, Dtype dtype,
                 std::string_view like = "");
// Fails unless two tensors have the same dtype, which may be any dtype of torch. `like` is the name of the argument
// `other`.
void check_same_dtype(const Call& call, std::string_view argument, const Tensor& tensor, const Tensor& other,
                      std::string_view like);
// Returns the dtype of a tensor, which must be a Float.
Float float_dtype(const Call& call, std::string_view argument, const Tensor& tensor);

// Returns the row of kCacheFormats that kv_cache_dtype means to a family of ops. Fails if there is none.
const CacheFormat& cache_format(const Call& call, const FormatName& kv_cache_dtype, FormatFamily family);

// Returns the codec of a cache in this format, and checks the dtype of the cache. `dtype` is that of the floating-point
// tensor that is written to the cache, or that the cache is read into; `of` names this tensor.
Codec cache_codec(const Call& call, const CacheFormat& format, std::string_view argument, const Tensor& cache,
                  Float dtype, std::string_view of = "the input");

// Each of the next five functions checks or determines a part of a codec, for ops that cannot use cache_codec().

// Fails unless a floating-point format is `auto` or the name of `dtype`.
void check_float_format(const Call& call, const CacheFormat& format, Float dtype, std::string_view of);
// Returns the element of an fp8 format in a cache whose dtype does not identify the element.
Element fp8_element_of_bytes(const Call& call, const CacheFormat& format);
// Returns the element of an fp8 format in a cache, whose dtype must be uint8 or the format's fp8 dtype.
Element fp8_element(const Call& call, const CacheFormat& format, std::string_view argument, const Tensor& cache);
// Returns the element of an e4m3 cache, whose dtype must be uint8, float8_e4m3fn or float8_e4m3fnuz.
Element e4m3_element(const Call& call, std::string_view argument, const Tensor& cache);
// Returns the codec with another element.
constexpr Codec with_element(Codec codec, Element element) {
  codec.element = element;
  return codec;
}

// Returns the address of an fp8 scale, which must be a float32 tensor of one element.
const float* scale_data(Call& call, std::string_view argument, const Tensor& scale);
// Returns the stride of fp8 scales in elements: 0 for one scale, 1 for one scale per head. The scales must be a float32
// tensor.
int64_t scale_stride(Call& call, std::string_view argument, const Tensor& scale, int64_t num_heads);

}  // namespace multikv
