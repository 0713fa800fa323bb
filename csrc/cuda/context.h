// What an op is launched in: torch's current stream of a device. Errors of CUDA become exceptions here.
#pragma once

#include <cstdint>
#include <string_view>

#include "cuda/launch.h"

namespace multikv::gpu {

// Throws if a call failed: "op: CUDA error: ...".
void check(std::string_view op, cudaError_t error);

// torch's current stream of a device. The process must have used a GPU through torch.
cudaStream_t current_stream(int32_t device_index);

Context context_of(int32_t device_index);

}  // namespace multikv::gpu
