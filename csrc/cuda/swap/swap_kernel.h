// A kernel that copies blocks between any memories that a GPU can access. The list of blocks is passed by value, in the
// parameters of the launch: nothing is uploaded or allocated, and a CUDA graph can capture the launch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "params/swap_params.h"

namespace multikv::gpu {

// What the kernel copies: pairs of blocks, each of them in every layer.
struct SwapKernelWork {
  const SwapLayer* layers;
  int64_t num_layers;
  int64_t unit_bytes;   // the unit of block ids
  int64_t block_bytes;  // bytes that are copied for each pair
  int64_t most_pairs;   // the most pairs that will be added
  // The number of threads that copy; 0: as many as there is work for. The bytes that few threads have in flight
  // saturate a link, and more threads would only hinder other kernels: docs/swap.md.
  int32_t link_threads;
};

// The two blocks of a pair: their distances from the pointers of a layer, in units.
struct BlockPair {
  uint32_t src, dst;
};

struct SwapHead;

// Collects pairs, and launches the kernel whenever its parameters are full. A thread may have only one SwapKernel at a
// time, because the parameters are thread-local.
class SwapKernel {
 public:
  SwapKernel(const SwapKernelWork& work, cudaStream_t stream);
  SwapKernel(const SwapKernel&) = delete;

  cudaError_t add(int64_t src_block, int64_t dst_block) {
    pairs_[count_++] = {static_cast<uint32_t>(src_block), static_cast<uint32_t>(dst_block)};
    return count_ == max_pairs_ ? submit() : cudaSuccess;
  }

  // Launches the kernel for the pairs that were added since its last launch.
  cudaError_t submit();

 private:
  template <int kBytes>
  void use_parameters();
  void choose_parameters();
  void divide_blocks();

  template <int kBytes>
  void launch();
  template <int kWidth, int kUnroll, int kBytes>
  void launch_as();

  SwapKernelWork work_;
  cudaStream_t stream_;
  // Pointers into the thread-local parameters of the launch.
  SwapHead* head_;
  unsigned char* payload_;
  BlockPair* pairs_;
  int64_t payload_bytes_;
  void (SwapKernel::*launch_)();
  int64_t layers_per_launch_ = 1, max_pairs_ = 0, count_ = 0;
  int width_ = 1, unroll_ = 4;  // the bytes of a vector, and the vectors that a thread has in flight
};

}  // namespace multikv::gpu
