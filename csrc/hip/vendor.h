// All that is AMD-specific on the host. ../cuda/vendor.h is its twin for NVIDIA.
#pragma once

#include <hip/hip_runtime_api.h>

#include <atomic>
#include <string_view>

#include "../params.h"

namespace multikv::gpu {

inline constexpr const char* kVendor = "HIP";
inline constexpr const char* kTorchLibrary = "libtorch_hip.so";

// gfx940 to gfx942 compute with the fnuz formats. A device that cannot be asked fails in the call that follows.
inline CacheFormat e4m3_of_bytes(int32_t device_index) {
  constexpr int kMaxDevices = 128;
  static std::atomic<CacheFormat> known[kMaxDevices];  // kSame: not asked yet
  if (device_index < 0 || device_index >= kMaxDevices) return CacheFormat::kE4M3FN;
  CacheFormat format = known[device_index].load(std::memory_order_relaxed);
  if (format == CacheFormat::kSame) {
    hipDeviceProp_t properties;
    if (hipGetDeviceProperties(&properties, device_index) != hipSuccess) return CacheFormat::kE4M3FN;
    const std::string_view name = properties.gcnArchName;  // such as gfx942:sramecc+:xnack-
    const std::string_view architecture = name.substr(0, name.find(':'));
    const bool is_fnuz = architecture == "gfx940" || architecture == "gfx941" || architecture == "gfx942";
    format = is_fnuz ? CacheFormat::kE4M3FNUZ : CacheFormat::kE4M3FN;
    known[device_index].store(format, std::memory_order_relaxed);
  }
  return format;
}

}  // namespace multikv::gpu
