// What Python sets of the GPU backend.
#pragma once

namespace multikv::gpu {

// Whether ops check their indices, which costs a synchronisation.
void set_check_indices(bool enabled);

}  // namespace multikv::gpu
