// Everything on the host that is specific to NVIDIA. hip/vendor/driver.h has the same interface for AMD.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <optional>

#include "core/format.h"

namespace multikv::gpu {

inline constexpr const char* kVendor = "CUDA";
inline constexpr const char* kTorchLibrary = "libtorch_cuda.so";

// The e4m3 type of the elements of a uint8 cache. NVIDIA has only e4m3fn.
inline Element e4m3_of_bytes(int32_t) { return Element::kE4M3FN; }

// The most bytes of kernel parameters that this library uses. CUDA's limit is 4,096 bytes; since CUDA 12.1 it is
// 32,764. has_large_parameters() says whether the installed driver takes more than 4,096.
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

// The flags of pinned memory: every GPU can access it.
inline constexpr unsigned kPinnedFlags = cudaHostAllocPortable;

// A function of the driver. The driver is not linked, so that this library can be loaded on hosts without a driver.
// The process may load the driver after the first call of get(). So get() keeps an answer only if the driver is loaded.
template <class Function>
class DriverFunction {
 public:
  explicit constexpr DriverFunction(const char* name) : name_(name) {}

  // Returns the function, or nullptr if the driver is not loaded or lacks the function.
  Function* get() {
    if (!is_known_.load(std::memory_order_acquire)) {
      void* const driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
      if (driver == nullptr) return nullptr;
      function_.store(reinterpret_cast<Function*>(dlsym(driver, name_)), std::memory_order_relaxed);
      is_known_.store(true, std::memory_order_release);
    }
    return function_.load(std::memory_order_relaxed);
  }

 private:
  const char* name_;
  std::atomic<Function*> function_{nullptr};
  std::atomic<bool> is_known_{false};
};

// Whether this process has initialised a GPU. The query does not initialise it.
inline bool has_context(int32_t device_index) {
  static constinit DriverFunction<CUresult(CUdevice, unsigned*, int*)> get_state{"cuDevicePrimaryCtxGetState"};
  unsigned flags = 0;
  int is_active = 0;
  const auto get = get_state.get();
  return get != nullptr && get(device_index, &flags, &is_active) == CUDA_SUCCESS && is_active;
}

// Whether this process has initialised any GPU. On a host without a driver, or with all GPUs hidden, it has not.
inline bool has_any_context() {
  static constinit DriverFunction<CUresult(int*)> get_count{"cuDeviceGetCount"};
  int count = 0;
  const auto get = get_count.get();
  if (get == nullptr || get(&count) != CUDA_SUCCESS) return false;
  for (int device = 0; device < count; ++device) {
    if (has_context(device)) return true;
  }
  return false;
}

// A range of memory that the driver knows.
struct Memory {
  uintptr_t begin, end;
  intptr_t gpu_delta;  // an address of the range + gpu_delta is the address at which a GPU accesses it
  int32_t device;      // -1: the host
};

// Returns the range of memory that holds an address; nothing if no GPU can access the address.
inline std::optional<Memory> memory_at(const void* address) {
  using Getter = CUresult(unsigned, CUpointer_attribute*, void**, CUdeviceptr);
  static constinit DriverFunction<Getter> get_attributes{"cuPointerGetAttributes"};
  CUpointer_attribute names[] = {CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_POINTER,
                                 CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
                                 CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL};
  unsigned type = 0;
  CUdeviceptr gpu_address = 0, begin = 0;
  size_t size = 0;
  int device = -1;
  void* values[] = {&type, &gpu_address, &begin, &size, &device};
  const auto at = reinterpret_cast<uintptr_t>(address);
  const auto get = get_attributes.get();
  if (get == nullptr || get(5, names, values, at) != CUDA_SUCCESS || type == 0 || gpu_address == 0 || size == 0)
    return {};
  // RANGE_START_ADDR may be an address of the host or of the GPU.
  const uintptr_t offset_bytes = begin <= at && at - begin < size ? at - begin : gpu_address - begin;
  return Memory{at - offset_bytes, at - offset_bytes + size, static_cast<intptr_t>(gpu_address - at),
                type == CU_MEMORYTYPE_HOST ? -1 : device};
}

// The most copies of a batch. A driver has failed on tens of thousands of copies at once.
inline constexpr int kMaxBatch = 1024;

// CUmemcpyAttributes, which headers before CUDA 12.8 lack.
struct BatchAttributes {
  struct Location {
    int type, id;
  };
  int src_access_order;
  Location src, dst;
  unsigned flags;
};
using CopyBatch = int(void**, const void**, size_t*, size_t, BatchAttributes*, size_t*, size_t, size_t*, cudaStream_t);

// Returns cuMemcpyBatchAsync with its signature of CUDA 12.8, or nullptr if the driver is older. Drivers of CUDA 13
// still export it, and export a newer signature as cuMemcpyBatchAsync_v2.
inline CopyBatch* batch_function() {
  static constinit DriverFunction<CopyBatch> function{"cuMemcpyBatchAsync"};
  return function.get();
}
inline bool is_legacy_default(cudaStream_t stream) { return stream == nullptr || stream == cudaStreamLegacy; }
inline cudaStream_t thread_stream() { return cudaStreamPerThread; }  // the calling thread's own default stream
inline bool has_batches() { return batch_function() != nullptr; }

// Submits many copies by one call. The driver refuses the call on the legacy default stream, and loses the copies on a
// stream that is being captured.
inline cudaError_t copy_batch(void** dst, const void** src, size_t* sizes, size_t count, bool is_src_access_order_any,
                              cudaStream_t stream) {
  constexpr int kOrderStream = 1, kOrderAny = 3;  // CU_MEMCPY_SRC_ACCESS_ORDER_STREAM and _ANY
  BatchAttributes attributes{is_src_access_order_any ? kOrderAny : kOrderStream, {}, {}, 0};
  size_t first = 0, failed = 0;  // the attributes hold for the copies from `first` on
  const int result = batch_function()(dst, src, sizes, count, &attributes, &first, 1, &failed, stream);
  return static_cast<cudaError_t>(result);  // the runtime numbers errors as the driver does
}

}  // namespace multikv::gpu
