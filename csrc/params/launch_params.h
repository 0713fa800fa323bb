// The requirements on a params struct.
#pragma once

#include <type_traits>

namespace multikv {

// A params struct can be passed by value to a GPU kernel:
//  - it is trivially copyable;
//  - it fits in 4 KiB, the limit of kernel parameters before CUDA 12.1.
template <class Params>
concept LaunchParams = std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096;

}  // namespace multikv
