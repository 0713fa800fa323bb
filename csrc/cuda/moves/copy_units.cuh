// Copies units (tokens) from slots to slots, in all planes of a group. pack_layers, unpack_layers and move_tokens share
// this kernel. They differ in a `Pairs`, which says what the slots of a unit are.
#pragma once

#include "cuda/moves/unit_layout.cuh"
#include "cuda/swap/strategy.h"

namespace multikv::gpu {

// What a launch knows besides its planes.
//  - Pairs::Entry is what it needs of a list in the memory of the host: see PlanesHead.
//  - pairs.of(unit, entries, first_entry) returns the SlotPair of a unit.
template <class Pairs, class Layout>
struct CopyHead {
  using Item = PlanePair;
  using Entry = typename Pairs::Entry;
  SlotLayout slots;
  Layout unit;
  Pairs pairs;
  int64_t num_units;
  // Within a device a thread block copies a chunk: `chunk` units, or a part of one unit.
  //
  //   plane 0                                 plane 1
  //   | chunk 0 | chunk 1 | ... | last |      | chunk 0 | ...         chunk_units > 1
  //   | unit 0: part 0 | part 1 | unit 1: part 0 | ...                parts_per_unit > 1
  int32_t chunk_units;
  uint32_t part_vectors;
  Divisor parts_per_unit, chunks_per_plane;
  Divisor32 unit_vectors;
  // Over a link a group of 2^lanes_log2 threads copies a piece of a row.
  int32_t lanes_log2;
  Divisor pieces_per_row, rows_per_unit, units;
};

constexpr int kCopyThreads = 256, kCopyUnroll = 4, kMaxChunkUnits = 128;

struct Addresses {
  const char* src = nullptr;
  char* dst = nullptr;
};

// A thread loads kCopyUnroll vectors before it stores the first. Neighbouring threads have neighbouring vectors.
template <int kWidth, class Launch>
__device__ void copy_chunk(const Launch& launch, const PlanePair& plane, const Offsets* offsets, uint32_t first_vector,
                           uint32_t num_vectors) {
  const auto& unit = launch.head.unit;
  const Divisor32 unit_vectors = launch.head.unit_vectors;
  for (uint32_t begin = threadIdx.x; begin < num_vectors; begin += kCopyUnroll * kCopyThreads) {
    Addresses at[kCopyUnroll];
    Pack<kWidth> values[kCopyUnroll];
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      const uint32_t i = begin + k * kCopyThreads;
      if (i >= num_vectors) continue;
      const uint32_t number = unit_vectors.divide(i);
      const Offsets slot = offsets[number];
      const Offsets vector = unit.vector(i - number * unit_vectors.value + first_vector);
      if (slot.src >= 0) at[k] = {plane.src + slot.src + vector.src, plane.dst + slot.dst + vector.dst};
    }
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      if (at[k].src != nullptr) values[k] = Pack<kWidth>::template read<true>(at[k].src);
    }
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      if (at[k].src != nullptr) values[k].template write<true>(at[k].dst);
    }
  }
}

// Copies within a device. Each thread block first looks up the offsets of the units of its chunk.
template <int kWidth, class Launch>
__global__ void __launch_bounds__(kCopyThreads) copy_units_kernel(const MULTIKV_GRID_CONSTANT Launch launch) {
  __shared__ Offsets offsets[kMaxChunkUnits];
  const auto& head = launch.head;
  const int64_t num_chunks = head.chunks_per_plane.signed_value() * launch.num_items;
  for (int64_t chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x) {
    const auto plane = static_cast<int64_t>(quotient_of(chunk, head.chunks_per_plane));
    const int64_t in_plane = chunk - plane * head.chunks_per_plane.signed_value();
    const auto first = static_cast<int64_t>(quotient_of(in_plane, head.parts_per_unit));
    const auto part = static_cast<uint32_t>(in_plane - first * head.parts_per_unit.signed_value());
    const int64_t first_unit = first * head.chunk_units, left = head.num_units - first_unit;
    const int num_units = static_cast<int>(left < head.chunk_units ? left : head.chunk_units);
    for (int i = threadIdx.x; i < num_units; i += kCopyThreads) {
      offsets[i] = head.slots.of(head.pairs.of(first_unit + i, launch.entries(), launch.first_entry));
    }
    __syncthreads();
    const uint32_t first_vector = part * head.part_vectors, rest = head.unit.num_vectors - first_vector;
    const uint32_t num_vectors = head.chunk_units > 1       ? num_units * head.unit.num_vectors
                                 : rest < head.part_vectors ? rest
                                                            : head.part_vectors;
    copy_chunk<kWidth>(launch, launch.items()[plane], offsets, first_vector, num_vectors);
    __syncthreads();
  }
}

// A piece of a row: the addresses of its first vector, and the number of vectors from there to the end of the row.
struct LinkPiece {
  Addresses at;
  uint32_t left;
};

// Finds piece i of i = ((plane * units + unit) * rows + row) * pieces_per_row + piece.
template <int kWidth, class Launch>
__device__ LinkPiece link_piece(const Launch& launch, int64_t i) {
  const auto& head = launch.head;
  const uint64_t row = quotient_of(i, head.pieces_per_row);
  const auto piece = static_cast<uint32_t>(i - row * head.pieces_per_row.value);
  const uint64_t unit_of_plane = quotient_of(row, head.rows_per_unit);
  const uint64_t plane = quotient_of(unit_of_plane, head.units);
  const auto unit = static_cast<int64_t>(unit_of_plane - plane * head.units.value);
  const uint32_t first_vector = piece * (kCopyUnroll << head.lanes_log2);
  const Offsets slot = head.slots.of(head.pairs.of(unit, launch.entries(), launch.first_entry));
  if (slot.src < 0) return {{}, 0};
  const Offsets at = head.unit.row(static_cast<uint32_t>(row - unit_of_plane * head.rows_per_unit.value));
  const PlanePair pair = launch.items()[plane];
  const int64_t begin = static_cast<int64_t>(first_vector) * kWidth;
  return {{pair.src + slot.src + at.src + begin, pair.dst + slot.dst + at.dst + begin},
          head.unit.row_vectors.value - first_vector};
}

// Copies over a link, to or from the memory of the host, with few threads. A thread computes where its next piece lies
// while the vectors of the present piece are in flight: docs/swap.md says what that gains.
template <int kWidth, class Launch>
__global__ void __launch_bounds__(1024) copy_units_over_link_kernel(const MULTIKV_GRID_CONSTANT Launch launch) {
  const auto& head = launch.head;
  const uint32_t lanes = 1u << head.lanes_log2, lane = threadIdx.x & (lanes - 1);
  const int64_t groups = blockDim.x >> head.lanes_log2, step = gridDim.x * groups;
  const int64_t num_pieces = head.pieces_per_row.signed_value() * head.rows_per_unit.signed_value() *
                             head.units.signed_value() * launch.num_items;
  int64_t i = blockIdx.x * groups + (threadIdx.x >> head.lanes_log2);
  LinkPiece next{};
  if (i < num_pieces) next = link_piece<kWidth>(launch, i);
  while (i < num_pieces) {
    const LinkPiece piece = next;
    Pack<kWidth> values[kCopyUnroll];
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      const uint32_t vector = k * lanes + lane;
      if (vector < piece.left) values[k] = Pack<kWidth>::read(piece.at.src + vector * kWidth);
    }
    i += step;
    if (i < num_pieces) next = link_piece<kWidth>(launch, i);
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      const uint32_t vector = k * lanes + lane;
      if (vector < piece.left) values[k].write(piece.at.dst + vector * kWidth);
    }
  }
}

// Divides the units of a launch into chunks, for num_items planes.
template <class Head>
void divide_into_chunks(Head& head, int width, int64_t num_items, const Context& context) {
  constexpr int64_t kChunkBytes = 32 << 10;
  const int64_t unit_bytes = static_cast<int64_t>(head.unit.num_vectors) * width;
  // `spread` units a chunk give each multiprocessor about 8 thread blocks.
  const int64_t spread = ceil_div<int64_t>(head.num_units * num_items, 8 * context.num_multiprocessors);
  head.chunk_units = static_cast<int32_t>(
      std::clamp<int64_t>(std::min(kChunkBytes / std::max<int64_t>(unit_bytes, 1), spread), 1, kMaxChunkUnits));
  const int64_t part_vectors = head.chunk_units > 1 ? head.unit.num_vectors : kChunkBytes / width;
  head.part_vectors = static_cast<uint32_t>(part_vectors);
  const int64_t parts = ceil_div<int64_t>(head.unit.num_vectors, part_vectors);
  head.parts_per_unit = Divisor::of(parts);
  head.chunks_per_plane = Divisor::of(ceil_div<int64_t>(head.num_units, head.chunk_units) * parts);
  head.unit_vectors = Divisor32::of(head.unit.num_vectors);
}

template <class Head>
void divide_into_pieces(Head& head) {
  const int64_t row_vectors = head.unit.row_vectors.value;
  head.lanes_log2 = 0;
  while ((kCopyUnroll << head.lanes_log2) < row_vectors && head.lanes_log2 < 5) ++head.lanes_log2;
  head.pieces_per_row = Divisor::of(ceil_div<int64_t>(row_vectors, kCopyUnroll << head.lanes_log2));
  head.rows_per_unit = Divisor::of(head.unit.rows.num_rows);
  head.units = Divisor::of(head.num_units);
}

// Launches the copy of head.num_units units in all planes of `launch`. `link_threads` is the number of threads that
// saturate the link; 0: the copy stays within the device.
template <int kWidth, class Launch>
void launch_units(Launch& launch, int link_threads, const Context& context) {
  auto& head = launch.head;
  if (head.num_units == 0) return;
  if (link_threads == 0) {
    constexpr int64_t kMostThreadBlocks = 1 << 30;
    divide_into_chunks(head, kWidth, launch.num_items, context);
    const int64_t chunks = head.chunks_per_plane.signed_value() * launch.num_items;
    const auto thread_blocks = static_cast<unsigned>(std::min(chunks, kMostThreadBlocks));
    copy_units_kernel<kWidth><<<thread_blocks, kCopyThreads, 0, context.stream>>>(launch);
    return;
  }
  divide_into_pieces(head);
  // One multiprocessor cannot saturate a link, two can.
  const int thread_blocks = std::max(2, link_threads / 1024);
  const int threads = std::clamp(link_threads / thread_blocks / 32 * 32, 32, 1024);
  copy_units_over_link_kernel<kWidth><<<thread_blocks, threads, 0, context.stream>>>(launch);
}

// The number of threads that copy over the link between two devices, one of which is the host (-1); 0 if none is.
inline int link_threads_of(const PlaneCopies& copies, const Context& context) {
  if (copies.src_device >= 0 && copies.dst_device >= 0) return 0;
  const Direction direction = direction_of(copies.src_device, copies.dst_device);
  return crossovers.of(context.device_index, direction).kernel_threads.load(std::memory_order_relaxed);
}

}  // namespace multikv::gpu
