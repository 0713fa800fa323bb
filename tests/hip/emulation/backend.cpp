// Registers the HIP backend's kernels, which the emulation runs, under dispatch key CPU.
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "cuda/launch.h"
#include "cuda/swap/addresses.h"
#include "ops.h"

namespace multikv::gpu {
namespace {

// Addresses of the host are the emulated GPU's own memory.
template <class Params>
const Params& on_device(const Params& params) {
  return params;
}
SwapBlocksParams on_device(SwapBlocksParams params) {
  params.src_device = params.dst_device = 0;
  return params;
}
ResolvedSwapBatch on_device(const SwapBlocksBatchParams& params) {
  static std::vector<ResolvedCopy> resolved;
  resolved.clear();
  for (int64_t i = 0; i < params.num_copies; ++i) {
    const SwapCopy& copy = params.copies[i];
    resolved.push_back({{reinterpret_cast<uintptr_t>(copy.src), 0}, {reinterpret_cast<uintptr_t>(copy.dst), 0}});
  }
  return {params, resolved.data()};
}

struct Backend {
  static const BackendTraits& traits() {
    static constexpr BackendTraits kTraits{
        .device_type = aoti_torch_device_type_cpu,
        .e4m3_of_bytes = [](int32_t) { return Element::kE4M3FN; },
        .read_to_host = nullptr,
        .checks_indices = [](int32_t) { return true; },
        .device_view = nullptr,
    };
    return kTraits;
  }
  template <class Params>
  static void run(const Params& params, const Call& call) {
    // The number of multiprocessors decides which kernels are launched. With 1 as well, small calls reach those for
    // large ones.
    static int calls = 0;
    const Context context{
        .stream = nullptr, .num_multiprocessors = ++calls % 2 == 0 ? 4 : 1, .device_index = 0, .stream_of = nullptr};
    if (launch(on_device(params), context) != hipSuccess)
      throw std::runtime_error(std::string(call.op()) + ": the launch failed");
  }
};

}  // namespace
}  // namespace multikv::gpu

STABLE_TORCH_LIBRARY_IMPL(multikv, CPU, m) { multikv::implement_ops<multikv::gpu::Backend>(m); }
