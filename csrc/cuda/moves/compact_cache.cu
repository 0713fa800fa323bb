#include "cuda/cache/planes.cuh"
#include "cuda/cache/slots.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/pack.cuh"
#include "cuda/launch.h"
#include "params/moves_params.h"

namespace multikv::gpu {
namespace {

// What a launch knows besides its planes. A thread block moves what one sequence keeps in a part of one head: at most
// kCompactVectors vectors of every token.
//
//   thread block = ((plane * sequences + sequence) * heads + head) * parts + part
struct CompactHead {
  using Item = Plane;
  struct Entry {};
  CompactLayout layout;
  Blocks blocks;
  KeptTokens kept;
  Divisor sequences, heads, parts;
  Divisor32 part_vectors;
  int64_t head_vectors;
  int32_t chunk;  // tokens that are read before the first of them is written
};

constexpr int kCompactThreads = 256, kHeldVectors = 4, kCompactVectors = kCompactThreads * kHeldVectors;

// The offsets of the slots that a token is read from and written to, in bytes from slot 0 of the plane. They are -1 if
// the token is not moved.
struct Move {
  int64_t src, dst;
};

// The elements of `keep` that belong to a sequence: from `begin` up to `end`. Element m moves to position
// start + m - first. `first` is `begin` before it was clipped.
struct KeptRange {
  int64_t begin, end, first, start;
};

// Bounds are clipped, so that no element outside of `keep` is read.
__device__ KeptRange kept_range(const KeptTokens& kept, int64_t sequence) {
  const PrefetchedIndex low(kept.keep_offsets, sequence), high(kept.keep_offsets, sequence + 1);
  const int64_t start = kept.dst_start.is_given() ? PrefetchedIndex(kept.dst_start, sequence).value() : 0;
  const int64_t begin = low.value() < 0 ? 0 : low.value();
  const int64_t end = high.value() > kept.num_elements ? kept.num_elements : high.value();
  return {begin, start < 0 ? begin : end, low.value(), start};
}

// Returns the offset of a position of a sequence, or -1 if the block table has no valid block for it.
__device__ int64_t position_offset(const CompactHead& head, int64_t sequence, int64_t position) {
  const BlockOffset at = split(head.blocks, position);
  if (at.block >= head.kept.blocks_per_sequence) return -1;
  const int64_t block =
      PrefetchedIndex(head.kept.block_table, sequence * head.kept.block_table.stride + at.block).value();
  if (static_cast<uint64_t>(block) >= static_cast<uint64_t>(head.blocks.num_blocks)) return -1;
  return head.layout.slots.offset_of({block, at.offset});
}

__device__ Move move_of(const CompactHead& head, const Indices& keep, const KeptRange& range, int64_t sequence,
                        int64_t m) {
  constexpr Move kNone = {-1, -1};
  const PrefetchedIndex index(keep, m), before(keep, m > range.begin ? m - 1 : m);
  const int64_t position = index.value();
  // The sum wraps around for bounds and starts that are far outside their range.
  const auto to = static_cast<int64_t>(static_cast<uint64_t>(range.start) + static_cast<uint64_t>(m) -
                                       static_cast<uint64_t>(range.first));
  if (to < 0 || position <= to) return kNone;
  if (m > range.begin && position <= before.value()) return kNone;
  const Move move{position_offset(head, sequence, position), position_offset(head, sequence, to)};
  return move.src < 0 || move.dst < 0 ? kNone : move;
}

// Finds the moves of the chunk of tokens that begins with element `first`. All threads of a thread block must call.
__device__ void find_moves(const CompactHead& head, const Indices& keep, const KeptRange& range, int64_t sequence,
                           int64_t first, Move* moves) {
  for (int i = threadIdx.x; i < head.chunk; i += kCompactThreads) {
    moves[i] = first + i < range.end ? move_of(head, keep, range, sequence, first + i) : Move{-1, -1};
  }
}

// Moves chunks of tokens in ascending order. Positions are above their destinations, which increase, so that a chunk
// reads nothing that an earlier chunk has written. The moves of the next chunk are found while the vectors of the
// present one are in flight.
template <int kWidth, class Launch>
__global__ void __launch_bounds__(kCompactThreads) compact_cache_kernel(const MULTIKV_GRID_CONSTANT Launch launch) {
  __shared__ Move moves[2][kCompactVectors];
  const CompactHead& head = launch.head;
  uint64_t rest = blockIdx.x;
  const auto next_index = [&rest](const Divisor& size) {
    const uint64_t quotient = quotient_of(rest, size);
    const auto index = static_cast<int64_t>(rest - quotient * size.value);
    rest = quotient;
    return index;
  };
  const int64_t part = next_index(head.parts), head_number = next_index(head.heads);
  const int64_t sequence = next_index(head.sequences);
  const Plane plane = launch.items()[rest];
  const Indices keep = head.kept.keep_of(plane.index, head_number);
  const KeptRange range = kept_range(head.kept, sequence);
  const int64_t first_vector = part * head.part_vectors.value, left = head.head_vectors - first_vector;
  char* const data = plane.data + head_number * head.layout.stride_head_bytes + first_vector * kWidth;

  find_moves(head, keep, range, sequence, range.begin, moves[0]);
  __syncthreads();
  int present = 0;
  for (int64_t first = range.begin; first < range.end; first += head.chunk, present ^= 1) {
    Pack<kWidth> values[kHeldVectors];
    char* to[kHeldVectors];
#pragma unroll
    for (int k = 0; k < kHeldVectors; ++k) {
      const uint32_t i = k * kCompactThreads + threadIdx.x, token = head.part_vectors.divide(i);
      const uint32_t vector = i - token * head.part_vectors.value;
      to[k] = nullptr;
      if (token >= static_cast<uint32_t>(head.chunk) || vector >= left) continue;
      const Move move = moves[present][token];
      if (move.src < 0) continue;
      to[k] = data + move.dst + vector * kWidth;
      values[k] = Pack<kWidth>::read(data + move.src + vector * kWidth);
    }
    find_moves(head, keep, range, sequence, first + head.chunk, moves[present ^ 1]);
    __syncthreads();  // the chunk has been read, and the next moves have been found
#pragma unroll
    for (int k = 0; k < kHeldVectors; ++k) {
      if (to[k] != nullptr) values[k].write(to[k]);
    }
  }
}

// Returns how many vectors of a head a thread block copies. Narrow parts make more thread blocks, and each of them
// copies more tokens at a time, so that few long sequences saturate the memory.
template <int kWidth>
int64_t part_of_head(int64_t head_vectors, int64_t heads, const Context& context) {
  constexpr int64_t kNarrowest = 64 / kWidth;
  int64_t part = std::min<int64_t>(head_vectors, kCompactVectors);
  while (part > kNarrowest && heads * ceil_div(head_vectors, part) < 4 * context.num_multiprocessors) {
    part = std::max(ceil_div<int64_t>(part, 2), kNarrowest);
  }
  return part;
}

template <int kWidth>
cudaError_t launch_group(const CompactCacheParams& p, const PlaneGroup<CompactLayout>& group, const Context& context) {
  CompactHead head{.layout = group.layout,
                   .blocks = p.blocks,
                   .kept = p.kept,
                   .sequences = Divisor::of(p.kept.num_sequences),
                   .heads = Divisor::of(p.num_heads)};
  head.head_vectors = group.layout.head_bytes / kWidth;
  const int64_t heads = group.num_planes * p.kept.num_sequences * p.num_heads;
  const int64_t part = part_of_head<kWidth>(head.head_vectors, heads, context);
  head.parts = Divisor::of(ceil_div(head.head_vectors, part));
  head.part_vectors = Divisor32::of(part);
  head.chunk = static_cast<int32_t>(kCompactVectors / part);
  const int64_t blocks_per_plane = p.kept.num_sequences * p.num_heads * head.parts.signed_value();
  const PlanesWork<CompactHead> work{group.planes, group.num_planes, 1};
  launch_planes(head, work, nullptr, [&](const auto& launch) {
    const auto thread_blocks = static_cast<unsigned>(blocks_per_plane * launch.num_items);
    compact_cache_kernel<kWidth><<<thread_blocks, kCompactThreads, 0, context.stream>>>(launch);
  });
  return cudaGetLastError();
}

}  // namespace

template <>
cudaError_t launch(const CompactCacheParams& p, const Context& context) {
  for (int64_t i = 0; i < p.planes.num_groups; ++i) {
    const PlaneGroup<CompactLayout>& group = p.planes.groups[i];
    AlignmentBits bits = group.layout.alignment_bits();
    for (int64_t plane = 0; plane < group.num_planes; ++plane) bits = bits | AlignmentBits(group.planes[plane].data);
    const int width = bits.widest(16);
    const cudaError_t launched = width == 16  ? launch_group<16>(p, group, context)
                                 : width >= 4 ? launch_group<4>(p, group, context)
                                              : launch_group<1>(p, group, context);
    MULTIKV_RETURN_IF_FAILED(launched);
  }
  return cudaSuccess;
}

}  // namespace multikv::gpu
