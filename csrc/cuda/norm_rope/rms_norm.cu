#include "cuda/core/grid.h"
#include "cuda/launch.h"
#include "cuda/norm_rope/row_norm.cuh"

namespace multikv::gpu {
namespace {

constexpr int kElements = 8;  // of a vector
constexpr int kHeld = 4;  // the vectors that a thread keeps in registers; of a longer row, the others are read twice

// The offsets of a row in bytes.
struct RowOffsets {
  int64_t input, out;

  __device__ static RowOffsets of(const StridedRows& rows, int64_t row) {
    RowOffsets offsets = {0, 0};
    for (int d = 0; d < rows.num_dims; ++d) {
      const int64_t rest = d == rows.num_dims - 1 ? 0 : row / rows.size[d], index = row - rest * rows.size[d];
      offsets.input += index * rows.src_stride[d];
      offsets.out += index * rows.dst_stride[d];
      row = rest;
    }
    return offsets;
  }
};

// kThreadsPerRow threads norm a row.
template <Float kDtype, bool kWide, int kThreadsPerRow>
__global__ void __launch_bounds__(kThreads) rms_norm_kernel(const MULTIKV_GRID_CONSTANT RmsNormParams p) {
  using Vector = FloatPack<kDtype, kElements>;
  constexpr int kRows = kThreads / kThreadsPerRow;
  constexpr int64_t kBytes = num_bytes(kDtype), kPiece = kThreadsPerRow * kElements;
  __shared__ float shared[kThreads / 32];
  const int thread = static_cast<int>(threadIdx.x) % kThreadsPerRow;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.x / kThreadsPerRow;
  const bool is_row = row < p.rows.num_rows;
  const RowOffsets offsets = RowOffsets::of(p.rows, is_row ? row : 0);
  const int64_t size = is_row ? p.row_elements : 0;
  const auto read = [&](int64_t piece) {
    const int64_t at = piece * kPiece + thread * kElements;
    return read_elements<kDtype, kElements, kWide, true>(p.input + offsets.input + at * kBytes, size - at);
  };
  const int64_t num_pieces = ceil_div(p.row_elements, kPiece);
  Vector held[kHeld];
#pragma unroll
  for (int i = 0; i < kHeld; ++i) held[i] = i < num_pieces ? read(i) : Vector{};
  PieceSums sums;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (i < num_pieces)
      sums.add(sum_of_threads<kThreadsPerRow>(sum_of_squares<kDtype, kElements>(held[i].words), shared));
  }
  for (int64_t i = kHeld; i < num_pieces; ++i)
    sums.add(sum_of_threads<kThreadsPerRow>(sum_of_squares<kDtype, kElements>(read(i).words), shared));

  const float factor = reciprocal_root(p.norm, sums.total(), static_cast<float>(p.row_elements));
  const auto write = [&](const Vector& vector, int64_t piece) {
    const int64_t at = piece * kPiece + thread * kElements;
    if (at >= size) return;
    const auto weights = Weights<kElements>::template read<kDtype, kWide>(p.weight, p.norm.weight_bias, at, size - at);
    const Vector result = normed<kDtype, kElements>(vector, factor, p.weight.is_given(), weights);
    write_elements<kDtype, kElements, kWide>(p.out + offsets.out + at * kBytes, result, size - at);
  };
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    if (i < num_pieces) write(held[i], i);
  }
  for (int64_t i = kHeld; i < num_pieces; ++i) write(read(i), i);
}

template <Float kDtype, bool kWide>
void launch_rows(const RmsNormParams& p, const Context& context) {
  constexpr int64_t kWarpElements = 32 * kElements;
  if (p.row_elements <= kWarpElements) {
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.rows.num_rows, kThreads / 32));
    rms_norm_kernel<kDtype, kWide, 32><<<blocks, kThreads, 0, context.stream>>>(p);
  } else {
    rms_norm_kernel<kDtype, kWide, kThreads>
        <<<static_cast<unsigned>(p.rows.num_rows), kThreads, 0, context.stream>>>(p);
  }
}

}  // namespace

template <>
cudaError_t launch(const RmsNormParams& p, const Context& context) {
  AlignmentBits bits = AlignmentBits(p.input) | AlignmentBits(p.out) | AlignmentBits(p.weight.data);
  for (int d = 0; d < p.rows.num_dims; ++d) bits = bits | p.rows.src_stride[d] | p.rows.dst_stride[d];
  with_dtype(p.dtype, [&]<Float kDtype>() {
    if (bits.widest(16) == 16) launch_rows<kDtype, true>(p, context);
    else launch_rows<kDtype, false>(p, context);
  });
  return cudaGetLastError();
}

}  // namespace multikv::gpu
