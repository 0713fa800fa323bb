// The CPU backend's side of each op, and the choice of instruction set that serves them all.
#pragma once

#include "../params.h"

namespace multikv::cpu {

void launch(const ReshapeAndCacheFlashParams& p);
void launch(const CpGatherCacheParams& p);

const char* isa_name();
bool set_isa(const char* name);          // false: unknown, not built, or not supported by this CPU
const char* supported_isa_names();       // comma-separated, the best last

}  // namespace multikv::cpu
