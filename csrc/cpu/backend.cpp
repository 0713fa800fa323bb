// Registers the CPU kernels, and exports to Python which instruction set they use.
#include "cpu/launch.h"
#include "ops.h"

namespace multikv::cpu {

struct Backend {
  static const BackendTraits& traits() {
    static constexpr BackendTraits kTraits{
        .device_type = aoti_torch_device_type_cpu,
        .e4m3_of_bytes = [](int32_t) { return CacheFormat::kE4M3FN; },
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

extern "C" {
__attribute__((visibility("default"))) const char* multikv_cpu_isa() { return multikv::cpu::isa_name(); }
__attribute__((visibility("default"))) const char* multikv_cpu_isas() { return multikv::cpu::supported_isa_names(); }
__attribute__((visibility("default"))) int multikv_set_cpu_isa(const char* name) { return multikv::cpu::set_isa(name); }
__attribute__((visibility("default"))) void multikv_set_batch_of_gpu(void* copy) {
  multikv::cpu::set_batch_of_gpu(reinterpret_cast<multikv::cpu::BatchOfGpu>(copy));
}
}
