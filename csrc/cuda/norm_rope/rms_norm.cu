#include <algorithm>

#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/launch.h"
#include "cuda/norm_rope/row_norm.cuh"

namespace multikv::gpu {
namespace {

constexpr int kElements = 8;         // of a vector
constexpr int kHeld = 4;             // the vectors of a row that a thread holds, unless one suffices
constexpr int kMaxRowThreads = 512;  // with kHeld, these fill `shared` of sum_of_pieces()

// The rows of input and out.
struct RowLayout {
  int num_dims;
  Divisor size[StridedRows::kMaxDims];

  static RowLayout of(const StridedRows& rows) {
    RowLayout layout{rows.num_dims, {}};
    for (int d = 0; d < rows.num_dims; ++d) layout.size[d] = Divisor::of(std::max<int64_t>(rows.size[d], 1));
    return layout;
  }
};

// The start of a row in input and in out.
struct RowPointers {
  const char* input;
  char* out;

  __device__ static __forceinline__ RowPointers of(const RmsNormParams& p, const RowLayout& layout, int64_t row) {
    RowPointers pointers = {p.input, p.out};
    for (int d = 0; d < layout.num_dims; ++d) {
      const bool is_last = d == layout.num_dims - 1;
      const int64_t rest = is_last ? 0 : static_cast<int64_t>(quotient_of(row, layout.size[d]));
      const int64_t index = row - rest * layout.size[d].signed_value();
      pointers.input += index * p.rows.src_stride[d];
      pointers.out += index * p.rows.dst_stride[d];
      row = rest;
    }
    return pointers;
  }
};

// kCount vectors of a row, of which vector i begins at element `begin` + i * step, in registers. With kWide, the
// vectors are aligned, and the size of the row is a multiple of kElements.
template <Float kDtype, bool kWide, int kCount>
struct RowVectors {
  using Vector = FloatPack<kDtype, kElements>;
  int64_t begin, step, size;
  Vector vectors[kCount];

  __device__ __forceinline__ int64_t at(int i) const { return begin + i * step; }
  __device__ __forceinline__ bool exists(int i) const { return at(i) < size; }

  // Loads of a wide row have no condition, so that all of them are in flight at once. kOnce is that of Pack.
  template <bool kOnce>
  __device__ __forceinline__ void read(const char* row) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t offset_bytes = (kWide && !exists(i) ? 0 : at(i)) * num_bytes(kDtype);
      if constexpr (kWide) vectors[i] = Vector::template read<kOnce>(row + offset_bytes);
      else vectors[i] = read_elements<kDtype, kElements, false>(row + offset_bytes, size - at(i));
    }
  }
  __device__ __forceinline__ void square(float (&sums)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float sum = sum_of_squares<kDtype, kElements>(vectors[i].words);
      sums[i] = exists(i) ? sum : 0.0f;
    }
  }
  __device__ __forceinline__ void write(char* row, float factor, const Weights<kDtype, kElements> (&weights)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (!exists(i)) continue;
      const Vector result = weights[i].normed(vectors[i], factor);
      write_elements<kDtype, kElements, kWide, true>(row + at(i) * num_bytes(kDtype), result, size - at(i));
    }
  }
  __device__ __forceinline__ void read_weights(Weights<kDtype, kElements> (&weights)[kCount], const NormWeight& weight,
                                               float bias) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t first = kWide && !exists(i) ? 0 : at(i);
      weights[i].template read<kWide>(weight, bias, first, kWide ? kElements : size - first);
    }
  }
};

// Returns the sum of a row of kCount pieces. sums[i] is the caller's sum in piece i. All threads of the thread block
// call.
template <int kCount>
__device__ __forceinline__ float sum_of_pieces(float (&sums)[kCount]) {
  __shared__ float2 shared[32];  // the sums of all warps in piece 0, then in piece 1, and so on
  const int num_warps = static_cast<int>(blockDim.x / 32), lane = static_cast<int>(threadIdx.x % 32);
  sum_of_lanes(sums, 32);
  __syncthreads();  // the sums of the call before have been read
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) reinterpret_cast<float*>(shared)[i * num_warps + threadIdx.x / 32] = sums[i];
  }
  __syncthreads();
  const float2 two = shared[lane];
  float total[1] = {2 * lane < kCount * num_warps ? two.x + two.y : 0.0f};
  sum_of_lanes(total, 32);
  return total[0];
}

// Up to 32 lanes norm a row, a vector for each lane.
template <Float kDtype, bool kWide>
__global__ void __launch_bounds__(kThreads)
    short_rows_kernel(const MULTIKV_GRID_CONSTANT RmsNormParams p, const MULTIKV_GRID_CONSTANT RowLayout layout,
                      int lane_bits) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) >> lane_bits;
  const bool is_row = row < p.rows.num_rows;
  const RowPointers pointers = RowPointers::of(p, layout, is_row ? row : 0);
  const int lane = static_cast<int>(threadIdx.x) & ((1 << lane_bits) - 1);
  RowVectors<kDtype, kWide, 1> vectors = {lane * kElements, 0, p.row_elements, {}};
  Weights<kDtype, kElements> weights[1];
  float sums[1];
  vectors.template read<true>(pointers.input);
  vectors.read_weights(weights, p.weight, p.norm.weight_bias);
  vectors.square(sums);
  sum_of_lanes(sums, 1 << lane_bits);
  const float factor = reciprocal_root(p.norm, sums[0], static_cast<float>(p.row_elements));
  if (is_row) vectors.write(pointers.out, factor, weights);
}

// A thread block norms a row, of which each thread holds kCount vectors.
template <Float kDtype, int kCount>
__global__ void __launch_bounds__(kMaxRowThreads)
    held_rows_kernel(const MULTIKV_GRID_CONSTANT RmsNormParams p, const MULTIKV_GRID_CONSTANT RowLayout layout) {
  const RowPointers pointers = RowPointers::of(p, layout, blockIdx.x);
  RowVectors<kDtype, true, kCount> vectors = {threadIdx.x * kElements, blockDim.x * kElements, p.row_elements, {}};
  Weights<kDtype, kElements> weights[kCount];
  float sums[kCount];
  vectors.template read<true>(pointers.input);
  vectors.read_weights(weights, p.weight, p.norm.weight_bias);
  vectors.square(sums);
  const float sum = sum_of_pieces(sums);
  vectors.write(pointers.out, reciprocal_root(p.norm, sum, static_cast<float>(p.row_elements)), weights);
}

// A thread block norms a row of any size and alignment, which it reads twice.
template <Float kDtype, bool kWide>
__global__ void __launch_bounds__(kThreads)
    any_rows_kernel(const MULTIKV_GRID_CONSTANT RmsNormParams p, const MULTIKV_GRID_CONSTANT RowLayout layout) {
  using Piece = RowVectors<kDtype, kWide, 1>;
  const RowPointers pointers = RowPointers::of(p, layout, blockIdx.x);
  const auto read = [&](int64_t begin) {
    Piece piece = {begin + threadIdx.x * kElements, 0, p.row_elements, {}};
    piece.template read<false>(pointers.input);
    return piece;
  };
  PieceSums row_sums;
  for (int64_t begin = 0; begin < p.row_elements; begin += kThreads * kElements) {
    float sums[1];
    read(begin).square(sums);
    row_sums.add(sum_of_pieces(sums));
  }
  const float factor = reciprocal_root(p.norm, row_sums.total(), static_cast<float>(p.row_elements));
  __syncthreads();  // the row has been read; it may be written in place
  for (int64_t begin = 0; begin < p.row_elements; begin += kThreads * kElements) {
    Piece piece = read(begin);
    Weights<kDtype, kElements> weights[1];
    piece.read_weights(weights, p.weight, p.norm.weight_bias);
    piece.write(pointers.out, factor, weights);
  }
}

template <Float kDtype, bool kWide>
void launch_rows(const RmsNormParams& p, const Context& context) {
  const RowLayout layout = RowLayout::of(p.rows);
  const auto rows = static_cast<unsigned>(p.rows.num_rows);
  const int64_t vectors = ceil_div<int64_t>(p.row_elements, kElements);
  if (vectors <= 32) {
    int lane_bits = 0;
    while (1 << lane_bits < vectors) ++lane_bits;
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.rows.num_rows << lane_bits, kThreads));
    short_rows_kernel<kDtype, kWide><<<blocks, kThreads, 0, context.stream>>>(p, layout, lane_bits);
  } else if (kWide && vectors <= kThreads) {
    held_rows_kernel<kDtype, 1><<<rows, kThreads, 0, context.stream>>>(p, layout);
  } else if (kWide && vectors <= kHeld * kMaxRowThreads) {
    unsigned threads = kThreads;
    while (kHeld * threads < vectors) threads *= 2;
    held_rows_kernel<kDtype, kHeld><<<rows, threads, 0, context.stream>>>(p, layout);
  } else {
    any_rows_kernel<kDtype, kWide><<<rows, kThreads, 0, context.stream>>>(p, layout);
  }
}

}  // namespace

template <>
cudaError_t launch(const RmsNormParams& p, const Context& context) {
  AlignmentBits bits = AlignmentBits(p.input) | AlignmentBits(p.out) | AlignmentBits(p.weight.data);
  for (int d = 0; d < p.rows.num_dims; ++d) bits = bits | p.rows.src_stride[d] | p.rows.dst_stride[d];
  with_dtype(p.dtype, [&]<Float kDtype>() {
    if (bits.widest(16) == 16 && p.row_elements % kElements == 0) launch_rows<kDtype, true>(p, context);
    else launch_rows<kDtype, false>(p, context);
  });
  return cudaGetLastError();
}

}  // namespace multikv::gpu
