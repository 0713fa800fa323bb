// Which vectors of a head a thread has, for kernels in which a few lanes share a head and each holds two vectors of it.
#pragma once

#include "cuda/core/grid.h"
#include "cuda/core/pack.cuh"
#include "params/norm_rope_params.h"

namespace multikv::gpu {

// The lanes that share a head. The first `rotated` lanes hold the elements of pairs. The other lanes hold the vectors
// that are not rotated, in order. For a head of 8 vectors, of which the vectors 1 .. 4 are rotated (offset = 1):
//
//   lane             0      1      2      3
//   is_neox          1, 3   2, 4   0, 5   6, 7
//   else             1, 2   3, 4   0, 5   6, 7
struct HeadLanes {
  int count;    // a power of two of at most 32; some of them may have no vector
  int rotated;  // lanes
  int offset;   // the first rotated vector
  int vectors;  // of a head
  bool is_neox;

  static HeadLanes of(const Rope& rope, int64_t head_size, int elements) {
    HeadLanes lanes = {1, 0, 0, static_cast<int>(head_size / elements), rope.is_neox};
    if (rope.is_on) {
      lanes.rotated = static_cast<int>(rope.num_pairs() / elements);
      lanes.offset = static_cast<int>(rope.offset / elements);
    }
    const int needed = lanes.rotated + ceil_div(lanes.vectors - 2 * lanes.rotated, 2);
    while (lanes.count < needed) lanes.count *= 2;
    return lanes;
  }

  // Vector `half` (0 or 1) of a lane; `vectors` or more if it has none.
  __device__ __forceinline__ int vector_of(int lane, int half) const {
    if (lane < rotated) return offset + (is_neox ? lane + half * rotated : 2 * lane + half);
    const int i = 2 * (lane - rotated) + half;
    return i < offset ? i : i + 2 * rotated;
  }
  // The inverse of vector_of(): lane * 2 + half.
  __device__ __forceinline__ int holder_of(int vector) const {
    const int i = vector - offset;
    if (i < 0 || i >= 2 * rotated) return 2 * rotated + (i < 0 ? vector : vector - 2 * rotated);
    if (!is_neox) return i;
    return i < rotated ? 2 * i : 2 * (i - rotated) + 1;
  }
  // Whether lane i holds the vectors 2i and 2i + 1.
  __device__ __forceinline__ bool are_in_order() const { return rotated == 0 || (!is_neox && offset == 0); }
};

}  // namespace multikv::gpu
