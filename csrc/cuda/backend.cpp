// Registers the GPU kernels under dispatch key CUDA (which ROCm tensors carry too), and runs them on torch's current
// stream.
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/launch.h"
#include "ops.h"
#include "vendor/driver.h"

namespace multikv::gpu {
namespace {

std::atomic<bool> check_indices{false};

[[noreturn]] void fail(std::string_view op, cudaError_t error) {
  static_cast<void>(cudaGetLastError());  // or the next call would find this error and take it for its own
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const bool is_lost = cudaStreamIsCapturing(nullptr, &status) == error;  // some errors stay whatever is called
  static_cast<void>(cudaGetLastError());
  throw std::runtime_error(std::string(op) + ": " + kVendor + " error: " + cudaGetErrorString(error) +
                           (is_lost ? " (the device's context is lost: no call will work in this process)" : ""));
}

void check(std::string_view op, cudaError_t error) {
  if (error != cudaSuccess) fail(op, error);
}

// torch's GPU library is not linked: it is absent where this one is built. It is in the process when a GPU tensor is.
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

// Makes a tensor's device the current one for as long as it lives. By torch's own guard: on its way back that one does
// not touch a GPU that the process has not used.
class DeviceGuard {
 public:
  DeviceGuard(std::string_view op, int32_t device_index) {
    int current = 0;
    check(op, cudaGetDevice(&current));
    if (current != device_index) guard_.emplace(device_index);
  }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
};

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

void read_to_host(void* host, const void* device, int64_t num_bytes, int32_t device_index) {
  const DeviceGuard guard("multikv", device_index);
  const cudaStream_t stream = current_stream(device_index);
  check("multikv", cudaMemcpyAsync(host, device, num_bytes, cudaMemcpyDeviceToHost, stream));
  check("multikv", cudaStreamSynchronize(stream));
}

// A stream that is being captured has no values to check yet, and could not be waited for.
bool checks_indices(int32_t device_index) {
  if (!check_indices.load(std::memory_order_relaxed)) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check("multikv", cudaStreamIsCapturing(current_stream(device_index), &status));
  return status == cudaStreamCaptureStatusNone;
}

const void* device_view(const void* host, int32_t device_index) {
  const DeviceGuard guard("multikv", device_index);
  void* device = nullptr;
  if (cudaHostGetDevicePointer(&device, const_cast<void*>(host), 0) == cudaSuccess) return device;
  static_cast<void>(cudaGetLastError());
  return nullptr;
}

struct Backend {
  static const BackendTraits& traits() {
    static constexpr BackendTraits kTraits{
        .device_type = aoti_torch_device_type_cuda,
        .e4m3_of_bytes = e4m3_of_bytes,
        .read_to_host = read_to_host,
        .checks_indices = checks_indices,
        .device_view = device_view,
    };
    return kTraits;
  }
  template <class Params>
  static void run(const Params& params, const Call& call) {
    static_assert(LaunchParams<Params>);
    const int32_t device_index = call.device_index();
    const DeviceGuard guard(call.op(), device_index);
    const Context context{current_stream(device_index), num_multiprocessors(device_index), device_index,
                          current_stream};
    if constexpr (std::is_void_v<decltype(launch(params, context))>) launch(params, context);
    else check(call.op(), launch(params, context));
    check(call.op(), cudaGetLastError());
  }
};

}  // namespace
}  // namespace multikv::gpu

STABLE_TORCH_LIBRARY_IMPL(multikv, CUDA, m) { multikv::implement_ops<multikv::gpu::Backend>(m); }

extern "C" {
__attribute__((visibility("default"))) void multikv_set_check_indices(int enabled) {
  multikv::gpu::check_indices.store(enabled != 0);
}

// For the CPU's library, which is called for addresses; see cpu/launch.h.
__attribute__((visibility("default"))) bool multikv_batch_of_gpu(const multikv::SwapBlocksBatchParams* p, char* error,
                                                                 int64_t error_size) {
  using namespace multikv::gpu;
  constexpr std::string_view kOp = "swap_blocks_batch";
  try {
    int device_index = 0;
    check(kOp, cudaGetDevice(&device_index));
    if (!has_context(device_index)) return false;  // this process has used no GPU: nothing there is a GPU's
    const Context context{current_stream(device_index), num_multiprocessors(device_index), device_index,
                          current_stream};
    check(kOp, launch(*p, context));
    check(kOp, cudaGetLastError());
  } catch (const std::exception& caught) {
    std::snprintf(error, error_size, "%s", caught.what());
  }
  return true;
}
}
