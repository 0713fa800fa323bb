#include "cuda/cache/vector_move.cuh"
#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "params/convert_params.h"

namespace multikv::gpu {
namespace {

// Decodes kElements fp8 codes, and multiplies them by the scale. The counterpart of Quantise.
template <Float kDtype, int kElements>
struct Dequantise {
  static constexpr int kSourceBytes = kElements, kDestinationBytes = kElements * static_cast<int>(num_bytes(kDtype));
  using Source = Pack<kSourceBytes>;
  float scale;
  Element element;

  __device__ Dequantise(float scale, Element element) : scale(scale), element(element) {}
  __device__ Pack<kDestinationBytes> operator()(const Source& source) const {
    return dequantise<kDtype, kElements>(source.words, scale, element);
  }
};

// The distances of a vector from the starts of src and dst, in elements.
struct ElementOffsets {
  int64_t src, dst;
};

// Returns the offsets of a vector. A row has row_vectors vectors, a vector has `elements` elements.
__device__ inline ElementOffsets offsets_of(const StridedRows& rows, Divisor row_vectors, int64_t vector,
                                            int elements) {
  int64_t row = quotient_of(vector, row_vectors);
  const int64_t within = (vector - row * row_vectors.signed_value()) * elements;
  ElementOffsets offsets = {within, within};
  for (int d = 0; d < rows.num_dims; ++d) {
    const int64_t index = d + 1 < rows.num_dims ? row % rows.size[d] : row;
    if (d + 1 < rows.num_dims) row /= rows.size[d];
    offsets.src += index * rows.src_stride[d];
    offsets.dst += index * rows.dst_stride[d];
  }
  return offsets;
}

// Each thread converts kUnroll vectors, blockDim.x apart. kDense: src and dst are one contiguous row.
template <class Move, int kElements, int kUnroll, bool kDense>
__global__ void __launch_bounds__(kThreads)
    convert_fp8_kernel(const MULTIKV_GRID_CONSTANT ConvertFp8Params p, Divisor row_vectors, int64_t num_vectors) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (blockDim.x * kUnroll) + threadIdx.x;
  const int64_t src_bytes = p.src_element_bytes(), dst_bytes = p.dst_element_bytes();
  typename Move::Source values[kUnroll];
  ElementOffsets at[kUnroll];
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    const int64_t vector = first + i * blockDim.x;
    if (vector >= num_vectors) continue;
    if constexpr (kDense) at[i] = {vector * kElements, vector * kElements};
    else at[i] = offsets_of(p.rows, row_vectors, vector, kElements);
    values[i] = Move::Source::read(p.src + at[i].src * src_bytes);
  }
  const Move move(p.scale, p.element);  // constructed after the loads are issued, because a Quantise computes 1 / scale
#pragma unroll
  for (int i = 0; i < kUnroll; ++i) {
    if (first + i * blockDim.x < num_vectors) move(values[i]).write(p.dst + at[i].dst * dst_bytes);
  }
}

template <class Move, int kElements>
void launch_move(const ConvertFp8Params& p, const Context& context) {
  constexpr int kUnroll = 2;
  const int64_t row_vectors = p.rows.row_size / kElements;
  const int64_t num_vectors = p.rows.num_rows * row_vectors;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(num_vectors, kThreads * kUnroll));
  const auto run = [&]<bool kDense>() {
    convert_fp8_kernel<Move, kElements, kUnroll, kDense>
        <<<blocks, kThreads, 0, context.stream>>>(p, Divisor::of(row_vectors), num_vectors);
  };
  if (p.rows.num_dims == 0) run.template operator()<true>();
  else run.template operator()<false>();
}

template <Float kDtype>
void launch_dtype(const ConvertFp8Params& p, const Context& context) {
  // A wide vector has kWide elements: 16 bytes of floats, or kWide bytes of fp8 codes.
  constexpr int kFloatBytes = static_cast<int>(num_bytes(kDtype)), kWide = 16 / kFloatBytes;
  const int src_width = p.to_fp8 ? 16 : kWide, dst_width = p.to_fp8 ? kWide : 16;
  const AlignmentBits row_bits = p.rows.src_alignment_bits() | p.rows.dst_alignment_bits();  // in elements
  const bool is_wide = row_bits.widest(kWide) == kWide && AlignmentBits(p.src).widest(src_width) == src_width &&
                       AlignmentBits(p.dst).widest(dst_width) == dst_width;
  if (p.to_fp8) {
    if (is_wide) launch_move<Quantise<kDtype, kWide>, kWide>(p, context);
    else launch_move<Quantise<kDtype, 1>, 1>(p, context);
  } else {
    if (is_wide) launch_move<Dequantise<kDtype, kWide>, kWide>(p, context);
    else launch_move<Dequantise<kDtype, 1>, 1>(p, context);
  }
}

}  // namespace

template <>
cudaError_t launch(const ConvertFp8Params& p, const Context& context) {
  with_dtype(p.dtype, [&]<Float kDtype>() { launch_dtype<kDtype>(p, context); });
  return cudaGetLastError();
}

}  // namespace multikv::gpu
