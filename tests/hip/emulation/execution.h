// Runs kernels on the CPU as an AMD GPU would, lane by lane.
//
// Every lane is a fiber. It runs until it calls one of the functions below that wait for other lanes, or until its end;
// then another lane runs. Thread blocks, the waves of a thread block and the lanes of a wave run in random order. The
// functions that wait for a wave complete when all lanes of a warp (32 lanes, half of a wave of 64) have called them
// from the same place. If other lanes of the wave have come to the same place, they take part.
//
// A launch throws std::runtime_error
//   - if lanes of one warp wait for each other at different places, or some have ended;
//   - if a lane reads another lane that takes no part;
//   - if some lanes of a thread block wait at __syncthreads() and others have ended, or wait at another one.
#pragma once

#include <hip/hip_runtime_api.h>

#include <cstdint>

namespace multikv::emulation {

struct Index {
  unsigned x, y, z;
};

// What a lane knows of itself.
struct Lane {
  Index thread, block;
  dim3 block_size, grid_size;
  unsigned index;  // in its wave
};
extern Lane lane;  // the lane that runs

// Threads per wave: 64 or 32.
extern unsigned wave_size;

// The compiler may not make these calls depend on more conditions than the source does, nor copy them into branches:
// their return addresses tell the places of the calls.
#define MULTIKV_CONVERGENT [[clang::convergent, clang::noinline]]
MULTIKV_CONVERGENT void wait_for_block();
MULTIKV_CONVERGENT uint64_t ballot(bool predicate);
MULTIKV_CONVERGENT uint64_t shuffle(uint64_t bits, unsigned source);

// Dynamic shared memory.
void* dynamic_shared_memory();

// A launch: what stands in <<<>>>.
class Launch {
 public:
  Launch(dim3 grid, dim3 block, size_t shared_bytes, hipStream_t) : grid_(grid), block_(block), shared_(shared_bytes) {}

  // Runs kernel(args...) on every lane, each of which has its own copies of the arguments.
  template <class Kernel, class... Args>
  void run(Kernel kernel, const Args&... args) const {
    const auto call = [&] { kernel(args...); };
    const auto body = [](const void* data) { (*static_cast<const decltype(call)*>(data))(); };
    static const char kIdentity = 0;
    execute(&kIdentity, body, &call);
  }

 private:
  // `kernel` is an address that identifies the kernel.
  void execute(const void* kernel, void (*body)(const void*), const void* call) const;

  dim3 grid_, block_;
  size_t shared_;
};

}  // namespace multikv::emulation
