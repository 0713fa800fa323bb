// Makes the Context of a launch on torch's current stream, and turns errors of the CUDA runtime into exceptions.
#pragma once

#include <cstdint>
#include <string_view>

#include "cuda/launch.h"

namespace multikv::gpu {

// Throws std::runtime_error if a call of the CUDA runtime failed: "op: CUDA error: ...".
void check(std::string_view op, cudaError_t error);

// torch's current stream of a device. The process must have used a GPU through torch.
cudaStream_t current_stream(int32_t device_index);

Context context_of(int32_t device_index);

}  // namespace multikv::gpu
