// Parts of error messages.
#pragma once

#include <initializer_list>
#include <string>
#include <string_view>

#include "frontend/torch/tensor.h"

namespace multikv {

std::string join(std::initializer_list<std::string_view> parts);

std::string text(int64_t number);
std::string count_text(int64_t count, std::string_view noun);  // "1 row", "2 rows"
// "a block from 0 to 8"; if `count` is 0, "no block (there are 0)". With `which` = " of 64 bytes", the latter is "no
// block (there are 0 of 64 bytes)".
std::string range_text(std::string_view noun, int64_t count, std::string_view which = {});

std::string device_text(Device device);             // "cuda:0", "cpu"
std::string device_type_text(int32_t device_type);  // "cuda"
std::string dtype_text(const Tensor& tensor);       // "bfloat16"
std::string shape_text(const Tensor& tensor);       // "shape [2, 3]"
std::string layout_text(const Tensor& tensor);      // "shape [2, 3] and strides [3, 1]"

}  // namespace multikv
