// The settings of the GPU backend that Python changes.
#pragma once

namespace multikv::gpu {

// Makes ops check their indices before they write anything. The check copies the indices to the host, and so waits for
// the stream.
void set_check_indices(bool enabled);

}  // namespace multikv::gpu
