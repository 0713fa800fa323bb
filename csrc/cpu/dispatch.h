// The choice of the instruction set that all kernels use.
#pragma once

#include "cpu/kernels.h"

namespace multikv::cpu {

Isa active_isa();
const char* active_isa_name();
bool set_active_isa(const char* name);  // returns false if the name is unknown, or this CPU or build lacks the ISA
const char* supported_isa_names();      // separated by commas, from the baseline to the widest

// Runs the items [begin, end) of p.work() on the calling thread, with the active instruction set.
template <class Params>
void run_on_active_isa(const Params& p, int64_t begin, int64_t end, Stores stores) {
  switch (active_isa()) {
#ifdef MULTIKV_X86_ISAS
    case Isa::kAvx512: return run<Isa::kAvx512>(p, begin, end, stores);
    case Isa::kAvx2: return run<Isa::kAvx2>(p, begin, end, stores);
#else
    case Isa::kAvx512:
    case Isa::kAvx2:
#endif
    case Isa::kBaseline: break;
  }
  return run<Isa::kBaseline>(p, begin, end, stores);
}

}  // namespace multikv::cpu
