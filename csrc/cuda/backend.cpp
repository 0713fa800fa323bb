// Registers the GPU kernels under dispatch key CUDA, which ROCm tensors carry as well, and runs them on torch's current
// stream.
#include "cuda/backend.h"

#include <torch/csrc/stable/accelerator.h>

#include <atomic>
#include <optional>

#include "c_api.h"
#include "cuda/context.h"
#include "cuda/swap/addresses.h"
#include "frontend/torch/takeover.h"
#include "ops.h"
#include "vendor/driver.h"
#include "vllm_ops.h"

namespace multikv::gpu {
namespace {

std::atomic<bool> check_indices{false};

// Makes a tensor's device the current one for as long as the object lives. The guard is torch's, because it returns to
// the previous device without initialising a GPU that the process has not used.
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

void read_to_host(void* host, const void* device, int64_t num_bytes, int32_t device_index) {
  const DeviceGuard guard("multikv", device_index);
  const cudaStream_t stream = current_stream(device_index);
  check("multikv", cudaMemcpyAsync(host, device, num_bytes, cudaMemcpyDeviceToHost, stream));
  check("multikv", cudaStreamSynchronize(stream));
}

// Indices are checked on the host, which has to wait for the stream. A captured stream cannot be waited for, and its
// tensors have no values yet, so that the indices of a captured call are not checked.
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
  static_cast<void>(cudaGetLastError());  // clears the error, which the next launch would report otherwise
  return nullptr;
}

// Returns the argument of launch(): the params of an op; for swap_blocks_batch, the params with their addresses looked
// up.
template <class Params>
const Params& launchable(const Params& params) {
  return params;
}
ResolvedSwapBatch launchable(const SwapBlocksBatchParams& params) { return resolve_addresses(params); }

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
    const DeviceGuard guard(call.op(), call.device_index());
    check(call.op(), launch(launchable(params), context_of(call.device_index())));
  }
};

}  // namespace

void set_check_indices(bool enabled) { check_indices.store(enabled); }

}  // namespace multikv::gpu

STABLE_TORCH_LIBRARY_IMPL(multikv, CUDA, m) { multikv::implement_ops<multikv::gpu::Backend>(m); }

const char* multikv_vllm_ops() {
  static const std::string names = multikv::op_names(multikv::vllm::kernels());
  return names.c_str();
}

const char* multikv_serve_vllm(const char* name, const char* schema) {
  return multikv::take_over(multikv::vllm::kernels(), "_C_cache_ops", "CUDA", name, schema);
}

void multikv_stop_serving_vllm() { multikv::give_back(); }
