// From the CPU's features to the table of kernels that serves it, and from each op to its kernel.
#include <atomic>
#include <cstring>
#include <string>

#include "kernels.h"
#include "launch.h"
#include "parallel.h"

namespace multikv::cpu {

namespace {

struct Kernels {
  const char* name;
  bool (*is_supported)();
  decltype(&reshape_and_cache_flash<Isa::kBaseline>) reshape_and_cache_flash;
  decltype(&cp_gather_cache<Isa::kBaseline>) cp_gather_cache;
};

template <Isa isa>
constexpr Kernels kernels_of(const char* name, bool (*is_supported)()) {
  return {name, is_supported, &reshape_and_cache_flash<isa>, &cp_gather_cache<isa>};
}

// From the plainest to the best. The features named here are the flags in cmake/CpuIsa.cmake.
constexpr Kernels kTables[] = {
    kernels_of<Isa::kBaseline>("baseline", [] { return true; }),
#ifdef MULTIKV_X86_ISAS
    kernels_of<Isa::kAvx2>("avx2",
                           [] {
                             return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                    __builtin_cpu_supports("f16c");
                           }),
    kernels_of<Isa::kAvx512>("avx512",
                             [] {
                               return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                                      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
                             }),
#endif
};

const Kernels* best() {
  const Kernels* result = &kTables[0];
  for (const auto& table : kTables) {
    if (table.is_supported()) result = &table;
  }
  return result;
}

std::atomic<const Kernels*>& chosen() {
  static std::atomic<const Kernels*> table{best()};
  return table;
}

const Kernels& kernels() { return *chosen().load(std::memory_order_relaxed); }

Stores stores_for(int64_t bytes_written) {
  return bytes_written > last_level_cache_bytes() ? Stores::kStreaming : Stores::kOrdinary;
}

}  // namespace

const char* isa_name() { return kernels().name; }

bool set_isa(const char* name) {
  for (const auto& table : kTables) {
    if (std::strcmp(table.name, name) != 0 || !table.is_supported()) continue;
    chosen().store(&table, std::memory_order_relaxed);
    return true;
  }
  return false;
}

const char* supported_isa_names() {
  static const std::string joined = [] {
    std::string names;
    for (const auto& table : kTables) {
      if (table.is_supported()) (names += names.empty() ? "" : ",") += table.name;
    }
    return names;
  }();
  return joined.c_str();
}

void launch(const ReshapeAndCacheFlashParams& p) {
  const int64_t elements = p.num_heads * (p.key.head_size + p.value.head_size);
  const int64_t bytes_written = elements * num_bytes(p.format, p.dtype);
  const int64_t bytes_moved = elements * num_bytes(p.dtype) + bytes_written;
  const Stores stores = stores_for(p.num_tokens * bytes_written);
  const auto body = [&](int64_t begin, int64_t end) { kernels().reshape_and_cache_flash(p, begin, end, stores); };
  if (is_parallel(p.num_tokens, bytes_moved) && has_duplicate_slots(p.slot_mapping, p.num_tokens, p.num_slots())) {
    body(0, p.num_tokens);
  } else {
    parallel_for(p.num_tokens, bytes_moved, body);
  }
}

void launch(const CpGatherCacheParams& p) {
  const int64_t entry_bytes = p.entry.num_rows * p.entry.row_bytes;
  const Stores stores = stores_for(p.num_tokens * entry_bytes);
  parallel_for(p.num_tokens, 2 * entry_bytes,
               [&](int64_t begin, int64_t end) { kernels().cp_gather_cache(p, begin, end, stores); });
}

}  // namespace multikv::cpu
