#include "cpu/dispatch.h"

#include <atomic>
#include <cstring>
#include <string>

namespace multikv::cpu {
namespace {

struct IsaSupport {
  Isa isa;
  const char* name;
  bool (*is_supported)();
};

// From the baseline to the widest, so that the last one that is supported is the best. Each entry tests the features
// that the compiler flags of its instruction set enable (cmake/Cpu.cmake).
constexpr IsaSupport kIsas[] = {
    {Isa::kBaseline, "baseline", [] { return true; }},
#ifdef MULTIKV_X86_ISAS
    {Isa::kAvx2, "avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }},
    {Isa::kAvx512, "avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
     }},
#endif
};

const IsaSupport* best() {
  const IsaSupport* result = &kIsas[0];
  for (const auto& candidate : kIsas) {
    if (candidate.is_supported()) result = &candidate;
  }
  return result;
}

std::atomic<const IsaSupport*>& active() {
  static std::atomic<const IsaSupport*> isa{best()};
  return isa;
}

}  // namespace

Isa active_isa() { return active().load(std::memory_order_relaxed)->isa; }

const char* active_isa_name() { return active().load(std::memory_order_relaxed)->name; }

bool set_active_isa(const char* name) {
  for (const auto& candidate : kIsas) {
    if (std::strcmp(candidate.name, name) != 0 || !candidate.is_supported()) continue;
    active().store(&candidate, std::memory_order_relaxed);
    return true;
  }
  return false;
}

const char* supported_isa_names() {
  static const std::string joined = [] {
    std::string names;
    for (const auto& candidate : kIsas) {
      if (candidate.is_supported()) (names += names.empty() ? "" : ",") += candidate.name;
    }
    return names;
  }();
  return joined.c_str();
}

}  // namespace multikv::cpu
