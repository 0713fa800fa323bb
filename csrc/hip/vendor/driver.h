// Everything on the host that is specific to AMD. cuda/vendor/driver.h has the same interface for NVIDIA.
#pragma once

#include <dlfcn.h>
#include <hip/hip_runtime_api.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

#include "core/format.h"

namespace multikv::gpu {

inline constexpr const char* kVendor = "HIP";
inline constexpr const char* kTorchLibrary = "libtorch_hip.so";

// The e4m3 type of the elements of a uint8 cache: e4m3fnuz on gfx940 to gfx942, whose fp8 instructions are for the fnuz
// types, else e4m3fn. If the name of the architecture cannot be read, this call returns e4m3fn, and the next call reads
// the name again.
inline Element e4m3_of_bytes(int32_t device_index) {
  constexpr int kMaxDevices = 128;
  enum class Known : uint8_t { kNothing, kE4M3FN, kE4M3FNUZ };
  static std::atomic<Known> known[kMaxDevices];
  if (device_index < 0 || device_index >= kMaxDevices) return Element::kE4M3FN;
  Known e4m3 = known[device_index].load(std::memory_order_relaxed);
  if (e4m3 == Known::kNothing) {
    hipDeviceProp_t properties;
    if (hipGetDeviceProperties(&properties, device_index) != hipSuccess) return Element::kE4M3FN;
    const std::string_view name = properties.gcnArchName;  // such as gfx942:sramecc+:xnack-
    const std::string_view architecture = name.substr(0, name.find(':'));
    const bool is_fnuz = architecture == "gfx940" || architecture == "gfx941" || architecture == "gfx942";
    e4m3 = is_fnuz ? Known::kE4M3FNUZ : Known::kE4M3FN;
    known[device_index].store(e4m3, std::memory_order_relaxed);
  }
  return e4m3 == Known::kE4M3FNUZ ? Element::kE4M3FNUZ : Element::kE4M3FN;
}

// The most bytes of kernel parameters that this library uses.
inline constexpr int kMaxParameterBytes = 4'000;
inline bool has_large_parameters() { return false; }

// The flags of pinned memory. Without flags, the memory is coherent, and every GPU can access it. With
// hipHostMallocPortable alone it is not coherent unless the variable HIP_HOST_COHERENT is set.
inline constexpr unsigned kPinnedFlags = hipHostMallocDefault;

// Whether the process has initialised AMD's runtime. Any call of HIP initialises it, and children that the process
// forks later cannot use a GPU. hsa_system_get_info() fails until the runtime is initialised. If this function is not
// found, the runtime counts as initialised.
inline bool has_runtime() {
  using Getter = int(int attribute, void* value);
  static const auto get = reinterpret_cast<Getter*>(dlsym(RTLD_DEFAULT, "hsa_system_get_info"));
  uint16_t major = 0;  // the value of attribute 0, the major version
  return get == nullptr || get(0, &major) == 0;
}

// Whether this process has initialised a GPU. The query does not initialise it.
inline bool has_context(int32_t device_index) {
  unsigned flags = 0;
  int is_active = 0;
  return hipDevicePrimaryCtxGetState(device_index, &flags, &is_active) == hipSuccess && is_active;
}

// Whether this process has initialised any GPU. On a host without a driver, or with all GPUs hidden, it has not.
inline bool has_any_context() {
  if (!has_runtime()) return false;
  int count = 0;
  if (hipGetDeviceCount(&count) != hipSuccess) {
    static_cast<void>(hipGetLastError());  // clears the error, which the next launch would report otherwise
    return false;
  }
  for (int device = 0; device < count; ++device) {
    if (has_context(device)) return true;
  }
  return false;
}

// A range of memory that the runtime knows.
struct Memory {
  uintptr_t begin, end;
  intptr_t gpu_delta;  // an address of the range + gpu_delta is the address at which a GPU accesses it
  int32_t device;      // -1: the host
};

// Finds the first address and the size of the range that holds an address. AMD's runtime has no call that always
// returns both: hipMemGetAddressRange() sets a null address for host memory that was registered, and the attribute
// HIP_POINTER_ATTRIBUTE_RANGE_SIZE has only 32 bits.
inline bool find_range(const void* address, uintptr_t& begin, size_t& size) {
  auto* const at = const_cast<void*>(address);
  hipDeviceptr_t base = nullptr;
  if (hipMemGetAddressRange(&base, &size, at) != hipSuccess) return false;
  if (base == nullptr && hipPointerGetAttribute(&base, HIP_POINTER_ATTRIBUTE_RANGE_START_ADDR, at) != hipSuccess)
    return false;
  begin = reinterpret_cast<uintptr_t>(base);
  return true;
}

// Returns the range of memory that holds an address; nothing if no GPU can access the address.
inline std::optional<Memory> memory_at(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  hipPointerAttribute_t attributes{};
  uintptr_t begin = 0;
  size_t size = 0;
  if (hipPointerGetAttributes(&attributes, address) != hipSuccess || attributes.devicePointer == nullptr ||
      !find_range(address, begin, size)) {
    static_cast<void>(hipGetLastError());
    return {};
  }
  const auto gpu_address = reinterpret_cast<uintptr_t>(attributes.devicePointer);
  const auto host_address = reinterpret_cast<uintptr_t>(attributes.hostPointer);  // null for memory of a GPU
  // The first address of host memory is one of the host, or of the GPU in older versions of the runtime.
  const bool is_host = host_address != 0, starts_on_host = is_host && host_address - begin < size;
  const uintptr_t offset_bytes = (starts_on_host ? host_address : gpu_address) - begin;
  if (offset_bytes >= size) return {};
  return Memory{at - offset_bytes, at - offset_bytes + size, static_cast<intptr_t>(gpu_address - at),
                is_host ? -1 : attributes.device};
}

// Batches of copies are not used. Up to ROCm 7.2, hipMemcpyBatchAsync is a loop over single copies, and fails if it is
// given attributes. Later versions have crashed on more than 8,192 copies.
inline constexpr int kMaxBatch = 1;
inline bool is_legacy_default(hipStream_t stream) { return stream == nullptr; }
inline hipStream_t thread_stream() { return hipStreamPerThread; }  // the calling thread's own default stream
inline bool has_batches() { return false; }
inline hipError_t copy_batch(void**, const void**, size_t*, size_t, bool, hipStream_t) { return hipErrorNotSupported; }

}  // namespace multikv::gpu
