#include "cuda/context.h"

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "vendor/driver.h"

namespace multikv::gpu {
namespace {

[[noreturn]] void fail(std::string_view op, cudaError_t error) {
  static_cast<void>(cudaGetLastError());  // clears the error, which the next launch would report otherwise
  // A sticky error has corrupted the context, and every later call returns it again.
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const bool is_lost = cudaStreamIsCapturing(nullptr, &status) == error;
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error(std::string(op) + ": " + kVendor + " error: " + cudaGetErrorString(error) +
                           (is_lost ? " (the device's context is lost: no call will work in this process)" : ""));
}

int num_multiprocessors(int32_t device_index) {
  constexpr int kMaxDevices = 128;
  static std::atomic<int> known[kMaxDevices];
  if (device_index < 0 || device_index >= kMaxDevices) return 1;
  int count = known[device_index].load(std::memory_order_relaxed);
  if (count == 0) {
    check("multikv", cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device_index));
    known[device_index].store(count, std::memory_order_relaxed);
  }
  return count;
}

}  // namespace

void check(std::string_view op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, error);
}

// torch's GPU library is looked up at run time and not linked, because multikv may be built with a CPU build of torch,
// which lacks it. Every process that has a GPU tensor has loaded torch's GPU library.
cudaStream_t current_stream(int32_t device_index) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const auto getter = [] {
    void* torch_gpu = dlopen(kTorchLibrary, RTLD_LAZY | RTLD_NOLOAD);
    return torch_gpu ? reinterpret_cast<Getter>(dlsym(torch_gpu, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  void* stream = nullptr;
  if (getter == nullptr) throw std::runtime_error(std::string("multikv: ") + kTorchLibrary + " has no current stream");
  TORCH_ERROR_CODE_CHECK(getter(device_index, &stream));
  return static_cast<cudaStream_t>(stream);
}

Context context_of(int32_t device_index) {
  return {current_stream(device_index), num_multiprocessors(device_index), device_index, current_stream};
}

}  // namespace multikv::gpu
