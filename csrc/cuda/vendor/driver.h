// All that is NVIDIA-specific on the host. ../hip/vendor.h is its twin for AMD.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstdint>
#include <optional>

#include "params/params.h"

namespace multikv::gpu {

inline constexpr const char* kVendor = "CUDA";
inline constexpr const char* kTorchLibrary = "libtorch_cuda.so";

inline CacheFormat e4m3_of_bytes(int32_t) { return CacheFormat::kE4M3FN; }

// What a kernel may be given by value, at most: since CUDA 12.1 almost 32 KB.
#if CUDART_VERSION >= 12010
inline constexpr int kMaxParameterBytes = 32'000;
inline bool has_large_parameters() {
  static const bool has = [] {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess && version >= 12010;
  }();
  return has;
}
#else
inline constexpr int kMaxParameterBytes = 4'000;
inline bool has_large_parameters() { return false; }
#endif

// Functions of the driver, which is not linked: a host without one still loads this library.
inline void* driver_function(const char* name) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
  return driver == nullptr ? nullptr : dlsym(driver, name);
}

// Whether this process has used that GPU.
inline bool has_context(int32_t device_index) {
  static const auto get_state =
      reinterpret_cast<CUresult (*)(CUdevice, unsigned*, int*)>(driver_function("cuDevicePrimaryCtxGetState"));
  unsigned flags = 0;
  int is_active = 0;
  return get_state != nullptr && get_state(device_index, &flags, &is_active) == CUDA_SUCCESS && is_active;
}

// A range of memory that the driver knows.
struct Memory {
  uintptr_t begin, end;
  intptr_t view;   // from an address of it to where a GPU finds that byte
  int32_t device;  // -1: the host's
};

// That of an address. Nothing: memory that no GPU can read.
inline std::optional<Memory> memory_at(const void* address) {
  using Getter = CUresult (*)(unsigned, CUpointer_attribute*, void**, CUdeviceptr);
  static const auto get = reinterpret_cast<Getter>(driver_function("cuPointerGetAttributes"));
  CUpointer_attribute names[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
                                 CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                                 CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
  unsigned type = 0;
  CUdeviceptr view = 0, begin = 0;
  size_t size = 0;
  int device = -1;
  void* values[] = {&type, &view, &begin, &size, &device};
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (get == nullptr || get(5, names, values, at) != CUDA_SUCCESS || type == 0 || view == 0 || size == 0) return {};
  const uintptr_t offset = begin <= at && at - begin < size ? at - begin : view - begin;  // if told as a GPU sees it
  return Memory{at - offset, at - offset + size, static_cast<intptr_t>(view - at),
                type == CU_MEMORYTYPE_HOST ? -1 : device};
}

// Copies that the driver takes many at a time. It refuses them on the legacy default stream, does not record them while
// a stream is captured, and has been seen to fail on tens of thousands at once.
inline constexpr int kMaxBatch = 1024;

inline void* batch_function() {
  static void* const function = driver_function("cuMemcpyBatchAsync");  // since CUDA 12.8, as 12.8 has it
  return function;
}
inline bool is_legacy_default(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }
inline cudaStream_t thread_stream() { return cudaStreamPerThread; }  // the calling thread's own default stream
inline bool has_batches() { return batch_function() != nullptr; }

inline cudaError_t copy_batch(void** dst, const void** src, size_t* sizes, size_t count, bool is_src_access_order_any,
                              cudaStream_t stream) {
  struct Location {
    int type, id;
  };
  struct Attributes {
    int src_access_order;
    Location src, dst;
    unsigned flags;
  };
  using Function = int (*)(void**, const void**, size_t*, size_t, Attributes*, size_t*, size_t, size_t*, cudaStream_t);
  constexpr int kStream = 1, kAny = 3;
  Attributes attributes{is_src_access_order_any ? kAny : kStream, {}, {}, 0};
  size_t first = 0, failed = 0;  // attributes hold for the copies from `first` on
  const int result =
      reinterpret_cast<Function>(batch_function())(dst, src, sizes, count, &attributes, &first, 1, &failed, stream);
  return static_cast<cudaError_t>(result);  // the runtime numbers errors as the driver does
}

}  // namespace multikv::gpu
