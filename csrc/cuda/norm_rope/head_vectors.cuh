// Heads that a few lanes share: each lane holds two vectors of a head in registers.
#pragma once

#include "cuda/core/grid.h"
#include "cuda/core/rotate_pairs.cuh"
#include "cuda/norm_rope/row_norm.cuh"

namespace multikv::gpu {

// The lanes that share a head. The first `rotated` lanes hold the elements of pairs. The other lanes hold the vectors
// that are not rotated, in order. For a head of 8 vectors, of which the vectors 1 .. 4 are rotated (offset = 1):
//
//   lane             0      1      2      3
//   is_neox          1, 3   2, 4   0, 5   6, 7
//   else             1, 2   3, 4   0, 5   6, 7
struct HeadLanes {
  int count;                 // a power of two of at most 32; some of them may have no vector
  int rotated;               // lanes
  int offset;                // the first rotated vector
  int vectors;               // of a head
  int lane_step, half_step;  // the distances of rotated vectors: of neighbouring lanes, and of the two of one lane
  bool is_neox;

  static HeadLanes of(const Rope& rope, int64_t head_size, int elements) {
    HeadLanes lanes = {1, 0, 0, static_cast<int>(head_size / elements), 2, 1, rope.is_neox};
    if (rope.is_on) {
      lanes.rotated = static_cast<int>(rope.num_pairs() / elements);
      lanes.offset = static_cast<int>(rope.offset / elements);
    }
    if (lanes.is_neox) {
      lanes.lane_step = 1;
      lanes.half_step = lanes.rotated;
    }
    const int needed = lanes.rotated + ceil_div(lanes.vectors - 2 * lanes.rotated, 2);
    while (lanes.count < needed) lanes.count *= 2;
    return lanes;
  }

  // Vector `half` (0 or 1) of a lane; `vectors` or more if it has none.
  __device__ __forceinline__ int vector_of(int lane, int half) const {
    if (lane < rotated) return offset + lane * lane_step + half * half_step;
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
  // Whether lane i holds vector i of each half of the head, and no lane is left over.
  __device__ __forceinline__ bool are_halves() const { return is_neox && rotated == count && vectors == 2 * count; }
};

// Returns the sum of the squares of the vectors 2 * lane and 2 * lane + 1, which other lanes may hold. `first` and
// `second` are the sums of the squares of this lane's own vectors. All lanes of the warp must call.
__device__ __forceinline__ float sum_of_neighbours(const HeadLanes& lanes, int lane, float first, float second) {
  if (lanes.are_in_order()) return first + second;
  const int begin = static_cast<int>(threadIdx.x % 32) - lane;
  float sums[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int vector = 2 * lane + half, holder = vector < lanes.vectors ? lanes.holder_of(vector) : 0;
    const float from_first = shuffle(first, begin + holder / 2), from_second = shuffle(second, begin + holder / 2);
    sums[half] = vector >= lanes.vectors ? 0.0f : holder % 2 == 0 ? from_first : from_second;
  }
  return sums[0] + sums[1];
}

// The vectors of a lane: the first element of each, and whether the lane has it. In place of a vector that it does not
// have, a lane reads the first vector of the head.
struct LaneVectors {
  int dims[2];
  bool exists[2];

  __device__ __forceinline__ LaneVectors(const HeadLanes& lanes, int lane, int elements) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int vector = lanes.vector_of(lane, half);
      exists[half] = vector < lanes.vectors;
      dims[half] = exists[half] ? vector * elements : 0;
    }
  }
};

// A lane's two vectors of a head, of kBytes each.
template <Float kHeadDtype, int kBytes>
struct HeadVectors {
  static constexpr Float kDtype = kHeadDtype;
  static constexpr int kElements = kBytes / static_cast<int>(num_bytes(kDtype));
  using Vector = FloatPack<kDtype, kElements>;
  using VectorWeights = Weights<kDtype, kElements>[2];

  Vector vectors[2];

  // The loads have no condition. With one, the compiler would wait for each load where the branches join.
  __device__ __forceinline__ void read(const char* first, const char* second) {
    vectors[0] = Vector::template read<true>(first);
    vectors[1] = Vector::template read<true>(second);
  }
  // `weights` are Weights or BiasedWeights.
  template <class VectorWeight>
  __device__ __forceinline__ void norm(float factor, const VectorWeight (&weights)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) vectors[half] = weights[half].normed(vectors[half], factor);
  }
};

// Reads the weights of a lane's vectors of a head. Element `begin` of `weight` is the weight of the head's first
// element.
template <Float kDtype, int kElements>
__device__ __forceinline__ void read_weights(Weights<kDtype, kElements> (&weights)[2], const NormWeight& weight,
                                             float bias, const LaneVectors& lane, int64_t begin) {
#pragma unroll
  for (int half = 0; half < 2; ++half)
    weights[half].template read<true>(weight, bias, begin + lane.dims[half], kElements);
}

// Computes the sums of the squares of kHeads heads, which `lanes` share. All lanes of the warp must call.
template <class Head, int kHeads>
__device__ __forceinline__ void sum_heads(float (&sums)[kHeads], const Head (&heads)[kHeads], const HeadLanes& lanes,
                                          int lane, const bool (&exists)[2]) {
  float halves[2 * kHeads];
#pragma unroll
  for (int i = 0; i < 2 * kHeads; ++i) {
    const float sum = sum_of_squares<Head::kDtype, Head::kElements>(heads[i / 2].vectors[i % 2].words);
    halves[i] = exists[i % 2] ? sum : 0.0f;
  }
  if (!lanes.are_halves()) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      halves[2 * h] = sum_of_neighbours(lanes, lane, halves[2 * h], halves[2 * h + 1]);
      halves[2 * h + 1] = 0.0f;
    }
  }
  sum_of_lanes(halves, lanes.count);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) sums[h] = halves[2 * h] + halves[2 * h + 1];
}

}  // namespace multikv::gpu
