#include "cpu/isa/simd/vec.h"
#include "params/attention_params.h"

namespace multikv::cpu {

template <>
void run<kIsa>(const MergeAttnStatesParams&, int64_t, int64_t, Stores) {}

}  // namespace multikv::cpu
