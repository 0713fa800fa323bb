// Norms, rotates and caches heads of any size and alignment, and rows of all heads of a token. A thread block works on
// one row, element by element.
#pragma once

#include "cuda/core/grid.h"
#include "cuda/core/rotate_pairs.cuh"
#include "cuda/norm_rope/head_output.cuh"
#include "cuda/norm_rope/row_norm.cuh"

namespace multikv::gpu {

// The elements of a head as tasks: first the pairs, then the elements that are not rotated.
struct HeadTasks {
  Divisor per_head;
  int64_t num_pairs, offset;
  bool is_neox;

  static HeadTasks of(const QkNormRopeCacheParams& p) {
    const int64_t num_pairs = p.rope.is_on ? p.rope.num_pairs() : 0;
    return {Divisor::of(p.head_size - num_pairs), num_pairs, p.rope.is_on ? p.rope.offset : 0, p.rope.is_neox};
  }
  __device__ bool is_pair(int64_t task) const { return task < num_pairs; }
  // The first, or only, element of a task, and the second element of a pair.
  __device__ int64_t first_of(int64_t task) const {
    if (is_pair(task)) return offset + (is_neox ? task : 2 * task);
    const int64_t i = task - num_pairs;
    return i < offset ? i : i + 2 * num_pairs;
  }
  __device__ int64_t second_of(int64_t task) const { return first_of(task) + (is_neox ? num_pairs : 1); }
  // The pair that an element belongs to, or -1.
  __device__ int64_t pair_of(int64_t element) const {
    const int64_t i = element - offset;
    if (i < 0 || i >= 2 * num_pairs) return -1;
    return is_neox ? (i < num_pairs ? i : i - num_pairs) : i / 2;
  }
};

// The heads of all kinds, indexed by HeadKind. Values have only a source and a number of heads.
struct RowSides {
  NormRopeHeads of_kind[3];

  static RowSides of(const QkNormRopeCacheParams& p) { return {{p.query, p.key, {p.value, {}, p.key.num_heads, {}}}}; }
};

template <Float kDtype>
struct Pair {
  FloatPack<kDtype, 1> x, y;
};

// A row: one head of a token, or all its queries, all its keys or all its values.
template <Float kDtype, Float kTable>
struct HeadRow {
  using One = FloatPack<kDtype, 1>;
  static constexpr int64_t kBytes = num_bytes(kDtype);
  const QkNormRopeCacheParams& p;
  const HeadTasks& tasks;
  int64_t token, position;
  const char* source;  // of the first head
  const NormRopeHeads& side;
  bool is_rotated;

  __device__ One read(int64_t element) const { return One::read(source + element * kBytes); }

  __device__ Pair<kDtype> rotated(Pair<kDtype> pair, int64_t i) const {
    rotate_separated<kDtype, kTable, 1>(pair.x, pair.y, read_angles<kTable, 1>(p.rope, token, position, i));
    return pair;
  }
  // Returns an element of the row as the norm reads it: rotated, if the norm comes after the rotation. `element` is an
  // index within the row, which may have several heads.
  __device__ One before_norm(int64_t element) const {
    if (p.order != NormOrder::kAfterRope || !is_rotated) return read(element);
    const int64_t pair = tasks.pair_of(element);  // there is one head in the row
    if (pair < 0) return read(element);
    const int64_t first = tasks.first_of(pair), second = tasks.second_of(pair);
    const Pair<kDtype> result = rotated({read(first), read(second)}, pair);
    return element == first ? result.x : result.y;
  }
  __device__ One normed(One x, int64_t element, float factor) const {
    Weights<kDtype, 1> weight;  // in a row of all heads, every element has a weight of its own
    weight.template read<false>(side.weight, p.norm.weight_bias, element, 1);
    return weight.normed(x, factor);
  }
};

// Returns the factor of the norm of a row of `size` elements. All threads of the thread block call.
template <Float kDtype, Float kTable>
__device__ __forceinline__ float factor_of(const HeadRow<kDtype, kTable>& row, int64_t size, const RmsNorm& norm) {
  using One = FloatPack<kDtype, 1>;
  constexpr int kElements = 8;
  static_assert(kThreads == 4 * 32);
  constexpr int64_t kPiece = kThreads * kElements;
  __shared__ float shared[kThreads / 32];
  PieceSums sums;
  for (int64_t begin = 0; begin < size; begin += kPiece) {
    const int64_t at = begin + threadIdx.x * kElements;
    float squares[kElements];
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      const auto one = at + k < size ? row.before_norm(at + k) : One{};
      const float x = at + k < size ? element<kDtype>(one.words, 0) : 0.0f;
      squares[k] = x * x;
    }
    const float sum = ((squares[0] + squares[1]) + (squares[2] + squares[3])) +
                      ((squares[4] + squares[5]) + (squares[6] + squares[7]));
    sums.add(sum_of_threads(sum, shared));
  }
  return reciprocal_root(norm, sums.total(), static_cast<float>(size));
}

// A thread block has a row: one head of a token, or if all heads are normed together, the queries, the keys or the
// values of a token.
template <Float kDtype, Float kTable>
__global__ void __launch_bounds__(kThreads)
    row_kernel(const MULTIKV_GRID_CONSTANT TokenParts parts, const MULTIKV_GRID_CONSTANT RowSides sides,
               const HeadTasks tasks, const MULTIKV_GRID_CONSTANT QkNormRopeCacheParams p) {
  const TokenPart part = parts.at(blockIdx.x);
  const NormRopeHeads& side = sides.of_kind[static_cast<int>(part.kind)];
  const int64_t num_heads = p.order == NormOrder::kAllHeads ? side.num_heads : 1;
  const PrefetchedIndex position_index = part.position(p), slot_index = part.slot(p);
  const int64_t position = position_index.value();
  if (!has_positions(p.rope, part.token, position)) return;  // the whole thread block
  const bool is_normed = p.order != NormOrder::kNone && !part.is_value();
  const char* source = side.source.head(part.token, part.index);
  const bool rotates = p.rope.is_on && !part.is_value();
  const HeadRow<kDtype, kTable> row = {p, tasks, part.token, position, source, side, rotates};

  float factor = 1.0f;
  if (is_normed) {
    factor = factor_of(row, num_heads * p.head_size, p.norm);
    __syncthreads();  // the row has been read; it may be written in place
  }
  const HeadWriter writer(p, part, slot_index.value());
  const int64_t tasks_per_head = tasks.per_head.signed_value();
  for (int64_t task = threadIdx.x; task < num_heads * tasks_per_head; task += kThreads) {
    const auto in_row = static_cast<int64_t>(quotient_of(task, tasks.per_head));
    const int64_t in_head = task - in_row * tasks_per_head, begin = in_row * p.head_size;
    const bool is_pair = tasks.is_pair(in_head), is_rotated = is_pair && row.is_rotated;
    const int64_t first = tasks.first_of(in_head), second = is_pair ? tasks.second_of(in_head) : first;
    Pair<kDtype> pair = {row.read(begin + first), row.read(begin + second)};
    if (is_rotated && p.order == NormOrder::kAfterRope) pair = row.rotated(pair, in_head);
    if (is_normed) {
      pair.x = row.normed(pair.x, begin + first, factor);
      pair.y = row.normed(pair.y, begin + second, factor);
    }
    if (is_rotated && p.order != NormOrder::kAfterRope) pair = row.rotated(pair, in_head);
    const int64_t head = part.index + in_row;
    const int dims[2] = {static_cast<int>(first), static_cast<int>(second)};
    const FloatPack<kDtype, 1> elements[2] = {pair.x, pair.y};
    writer.template write<kDtype, 1>(head, dims, {true, is_pair}, scale_of(p, part, head), elements);
  }
}

}  // namespace multikv::gpu
