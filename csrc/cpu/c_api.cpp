// The C functions of the CPU library.
#include "c_api.h"

#include <string>

#include "cpu/dispatch.h"
#include "cpu/launch.h"
#include "frontend/check/format_table.h"
#include "multikv_build_id.h"

int32_t multikv_abi_version() { return MULTIKV_ABI_VERSION; }

const char* multikv_build_id() { return MULTIKV_BUILD_ID; }

const char* multikv_cpu_isa() { return multikv::cpu::active_isa_name(); }

const char* multikv_cpu_isas() { return multikv::cpu::supported_isa_names(); }

int32_t multikv_set_cpu_isa(const char* name) { return multikv::cpu::set_active_isa(name) ? 1 : 0; }

const char* multikv_formats() {
  static const std::string json = multikv::formats_json();
  return json.c_str();
}

void multikv_set_gpu_swap_batch(void* function) {
  multikv::cpu::set_gpu_swap_batch(reinterpret_cast<multikv::cpu::GpuSwapBatch>(function));
}
