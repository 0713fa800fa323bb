// All that is AMD-specific on the host. ../cuda/vendor.h is its twin for NVIDIA.
#pragma once

#include <hip/hip_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "params/params.h"

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

// What a kernel may be given by value, at most.
inline constexpr int kMaxParameterBytes = 4'000;
inline bool has_large_parameters() { return false; }

// Whether this process has used that GPU.
inline bool has_context(int32_t device_index) {
  unsigned flags = 0;
  int is_active = 0;
  return hipDevicePrimaryCtxGetState(device_index, &flags, &is_active) == hipSuccess && is_active;
}

// A range of memory that the runtime knows.
struct Memory {
  uintptr_t begin, end;
  intptr_t view;   // from an address of it to where a GPU finds that byte
  int32_t device;  // -1: the host's
};

// That of an address. Nothing: memory that no GPU can read.
inline std::optional<Memory> memory_at(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  hipPointerAttribute_t attributes{};
  if (hipPointerGetAttributes(&attributes, address) != hipSuccess || attributes.devicePointer == nullptr) {
    static_cast<void>(hipGetLastError());
    return {};
  }
  const auto view = reinterpret_cast<uintptr_t>(attributes.devicePointer);
  hipDeviceptr_t begin = nullptr;
  size_t size = 0;
  if (hipMemGetAddressRange(&begin, &size, attributes.devicePointer) != hipSuccess) {
    static_cast<void>(hipGetLastError());
    return {};
  }
  const uintptr_t first = at - (view - reinterpret_cast<uintptr_t>(begin));
  const bool is_host = attributes.hostPointer != nullptr;
  return Memory{first, first + size, static_cast<intptr_t>(view - at), is_host ? -1 : attributes.device};
}

// hipMemcpyBatchAsync is not used: up to ROCm 7.2 it is a loop over single copies, with attributes it fails there, and
// above 8192 copies later versions have crashed.
inline constexpr int kMaxBatch = 1;
inline bool is_legacy_default(hipStream_t stream) { return stream == nullptr; }
inline hipStream_t thread_stream() { return hipStreamPerThread; }  // the calling thread's own default stream
inline bool has_batches() { return false; }
inline hipError_t copy_batch(void**, const void**, size_t*, size_t, bool, hipStream_t) { return hipErrorNotSupported; }

}  // namespace multikv::gpu
