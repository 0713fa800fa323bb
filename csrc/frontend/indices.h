// Checks of index values, on the host, before anything is written. On a GPU they cost a synchronisation and run only
// on request; its kernels skip what these would reject.
#pragma once

#include "call.h"

namespace multikv {

// Every slot is below num_slots; negative ones are padding.
void check_slots(const Call& call, std::string_view argument, const Indices& slots, int64_t num_tokens, int64_t num_slots);

}  // namespace multikv
