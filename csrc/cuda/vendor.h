// All that is NVIDIA-specific on the host. ../hip/vendor.h is its twin for AMD.
#pragma once

#include "../params.h"

namespace multikv::gpu {

inline constexpr const char* kVendor = "CUDA";
inline constexpr const char* kTorchLibrary = "libtorch_cuda.so";

inline CacheFormat e4m3_of_bytes(int32_t) { return CacheFormat::kE4M3FN; }

}  // namespace multikv::gpu
