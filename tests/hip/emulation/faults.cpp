// Kernels with a fault each, and without: what the emulation says of them. Prints a line for each: "name: right",
// "name: wrong" if the result is wrong in one of several runs, or the text of the error.
#include <cstdio>
#include <stdexcept>
#include <vector>

#include "hip/hip_runtime.h"

using multikv::emulation::Launch;

extern "C" void multikv_emulate(unsigned wave_size, uint64_t seed);

namespace {

constexpr unsigned kThreads = 128, kWarp = 32;

// Reverses the numbers of a block.
template <bool kHasBarrier>
__global__ void reverse_kernel(unsigned* out) {
  __shared__ unsigned numbers[kThreads];
  numbers[threadIdx.x] = threadIdx.x;
  if constexpr (kHasBarrier) __syncthreads();
  out[threadIdx.x] = numbers[kThreads - 1 - threadIdx.x];
}

// Counts the odd lanes of each warp that are below the caller's warp's number.
template <bool kKnowsWaves>
__global__ void count_kernel(unsigned* out) {
  const unsigned warp = threadIdx.x / kWarp;
  const uint64_t wave = __ballot(threadIdx.x % kWarp < warp + 1);
  const auto mask = static_cast<uint32_t>(kKnowsWaves ? wave >> (__lane_id() & 32) : wave);
  out[threadIdx.x] = static_cast<unsigned>(__popc(mask)) - (warp + 1) + threadIdx.x;
}

__global__ void divergent_ballot_kernel(unsigned* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = static_cast<unsigned>(__ballot(1));
}
__global__ void half_of_a_wave_kernel(unsigned* out) {  // a warp of its own may call
  out[threadIdx.x] = threadIdx.x;
  if (threadIdx.x / kWarp == 1) out[threadIdx.x] = __shfl_xor(__shfl_xor(threadIdx.x, 1, 32), 1, 32);
}
__global__ void ended_lane_kernel(unsigned* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl(threadIdx.x, 5, 32);
}
__global__ void inactive_lane_kernel(unsigned* out) {  // another warp of the wave, which is elsewhere
  if (threadIdx.x < kWarp) out[threadIdx.x] = __shfl(threadIdx.x, 40, 64);
}
__global__ void uneven_barrier_kernel(unsigned* out) {
  if (threadIdx.x < 64) __syncthreads();
  out[threadIdx.x] = threadIdx.x;
}
__global__ void two_barriers_kernel(unsigned* out) {
  if (threadIdx.x < 64) {
    __syncthreads();
    out[threadIdx.x] = threadIdx.x;
  } else {
    __syncthreads();
    out[threadIdx.x] = threadIdx.x + 1;
  }
}
__global__ void unwritten_memory_kernel(unsigned* out) {
  __shared__ unsigned zeros[kThreads];
  if (threadIdx.x == kThreads) zeros[threadIdx.x] = 0;
  out[threadIdx.x] = zeros[threadIdx.x] + threadIdx.x;
}

template <class Expected>
void report(const char* name, void (*kernel)(unsigned*), Expected expected) {
  bool is_right = true;
  try {
    for (int run = 0; run < 8; ++run) {
      std::vector<unsigned> out(kThreads);
      Launch(dim3(1), dim3(kThreads), 0, nullptr).run(kernel, out.data());
      for (unsigned i = 0; i < kThreads; ++i) is_right = is_right && out[i] == expected(i);
    }
    std::printf("%s: %s\n", name, is_right ? "right" : "wrong");
  } catch (const std::runtime_error& error) {
    std::printf("%s: %s\n", name, error.what());
  }
}

}  // namespace

int main(int, char** arguments) {
  multikv_emulate(static_cast<unsigned>(std::atoi(arguments[1])), 1);
  const auto reversed = [](unsigned i) { return kThreads - 1 - i; };
  const auto same = [](unsigned i) { return i; };
  report("a barrier", reverse_kernel<true>, reversed);
  report("no barrier", reverse_kernel<false>, reversed);
  report("waves of any size", count_kernel<true>, same);
  report("32 lanes assumed", count_kernel<false>, same);
  report("divergent ballot", divergent_ballot_kernel, same);
  report("half of a wave", half_of_a_wave_kernel, same);
  report("ended lane", ended_lane_kernel, same);
  report("inactive lane", inactive_lane_kernel, same);
  report("uneven barrier", uneven_barrier_kernel, same);
  report("two barriers", two_barriers_kernel, same);
  report("unwritten memory", unwritten_memory_kernel, same);
}
