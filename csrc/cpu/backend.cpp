// Registers the CPU kernels with the dispatcher.
#include "c_api.h"
#include "cpu/launch.h"
#include "frontend/torch/takeover.h"
#include "ops.h"
#include "vllm_ops.h"

namespace multikv::cpu {

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
  static void run(const Params& params, const Call&) {
    launch(params);
  }
};

}  // namespace multikv::cpu

STABLE_TORCH_LIBRARY_IMPL(multikv, CPU, m) { multikv::implement_ops<multikv::cpu::Backend>(m); }

const char* multikv_vllm_ops() {
  static const std::string names = multikv::op_names(multikv::vllm::kernels());
  return names.c_str();
}

const char* multikv_serve_vllm(const char* name, const char* schema) {
  return multikv::take_over(multikv::vllm::kernels(), "_C_cache_ops", "CPU", name, schema);
}

void multikv_stop_serving_vllm() { multikv::give_back(); }
