// Copies units, of one or more tokens each, from slots to slots, in all planes of a group. pack_layers, unpack_layers
// and move_tokens share the two kernels: one copies within a device, the other over a link. The ops differ in a
// `Pairs`, which says what the slots of a unit are.
#pragma once

#include "cuda/moves/link_order.cuh"
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
  // Within a device a thread block copies a chunk: chunk_units units, or a part of one unit.
  //
  //   plane 0                                 plane 1
  //   | chunk 0 | chunk 1 | ... | last |      | chunk 0 | ...         chunk_units > 1
  //   | unit 0: part 0 | part 1 | unit 1: part 0 | ...                parts_per_unit > 1
  int32_t chunk_units;
  uint32_t part_vectors;
  Divisor parts_per_unit, chunks_per_plane;
  Divisor32 unit_vectors;
  LinkOrder link;  // of a copy over a link
};

constexpr int kCopyThreads = 256, kMaxChunkUnits = 128;

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

// A piece of a row: the addresses of its first vector, and its number of vectors.
struct LinkPiece {
  int64_t src = 0, dst = 0;
  uint32_t num_vectors = 0;

  // The piece that another lane of the warp holds. All lanes must call.
  __device__ LinkPiece of_lane(int lane) const {
    return {shuffle(src, lane), shuffle(dst, lane), shuffle(num_vectors, lane)};
  }
};

// Finds piece i; it is empty if there is none, or if its unit is not copied.
template <int kWidth, class Launch>
__device__ LinkPiece link_piece(const Launch& launch, int64_t i) {
  const auto& head = launch.head;
  if (i >= head.link.num_pieces) return {};
  const uint64_t row = quotient_of(i, head.link.pieces_per_row);
  const uint32_t first_vector = static_cast<uint32_t>(i - row * head.link.pieces_per_row.value) << head.link.lanes_log2;
  const LinkRow at = head.link.row(row);
  if (at.unit >= head.num_units) return {};
  const Offsets slot = head.slots.of(head.pairs.of(at.unit, launch.entries(), launch.first_entry));
  if (slot.src < 0) return {};
  const Offsets in_unit = head.unit.row(at.row);
  const PlanePair plane = launch.items()[at.plane];
  const int64_t begin = static_cast<int64_t>(first_vector) * kWidth;
  const uint32_t left = head.unit.row_vectors.value - first_vector, most = 1u << head.link.lanes_log2;
  return {reinterpret_cast<int64_t>(plane.src) + slot.src + in_unit.src + begin,
          reinterpret_cast<int64_t>(plane.dst) + slot.dst + in_unit.dst + begin, left < most ? left : most};
}

// Copies over a link, to or from the memory of the host, with few threads. A step is 128 >> lanes_log2 pieces. Warp w
// copies the steps w, w + warps, w + 2 * warps, and so on:
//
//   piece   | 0   1   2   3  | 4   5   6   7  | ...                  lanes_log2 = 5: a piece is 32 vectors
//           | step 0: warp 0 | step 1: warp 1 | ... | step `warps`: warp 0 | ...
//
// Each lane finds one of the next 32 pieces of its warp, while vectors of the present step are in flight, and the other
// lanes get the addresses from it. docs/swap.md says what looking ahead gains.
template <int kWidth, class Launch>
__global__ void __launch_bounds__(kMaxLinkThreads)
    copy_units_over_link_kernel(const MULTIKV_GRID_CONSTANT Launch launch) {
  const LinkOrder& link = launch.head.link;
  const int lane = static_cast<int>(threadIdx.x) & 31, lanes_log2 = link.lanes_log2;
  const int step_log2 = LinkOrder::kStepLog2 - lanes_log2;  // 2^step_log2 pieces are a step
  const int64_t warps = gridDim.x * (blockDim.x / 32);
  const int64_t first_step = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  const int64_t num_steps = (link.num_pieces + (1 << step_log2) - 1) >> step_log2;
  const auto find = [=](const Launch& from, int64_t step) {
    const int64_t i = ((step + (lane >> step_log2) * warps) << step_log2) + (lane & ((1 << step_log2) - 1));
    return link_piece<kWidth>(from, i);
  };
  const uint32_t vector = lane & ((1 << lanes_log2) - 1);
  LinkPiece found = find(launch, first_step);
  int holder = lane >> lanes_log2;  // the lane that found the piece that this lane copies for k == 0
  for (int64_t step = first_step; step < num_steps;) {
    Pack<kWidth> values[kCopyUnroll];
    char* dst[kCopyUnroll];
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      const LinkPiece piece = found.of_lane(holder + (k << (5 - lanes_log2)));
      const bool is_vector = vector < piece.num_vectors;
      dst[k] = is_vector ? reinterpret_cast<char*>(piece.dst) + vector * kWidth : nullptr;
      if (is_vector) values[k] = Pack<kWidth>::read(reinterpret_cast<const char*>(piece.src) + vector * kWidth);
    }
    step += warps;
    holder += 1 << step_log2;
    if (holder >= 32) {
      holder -= 32;
      if (step < num_steps) found = find(launch, step);
    }
#pragma unroll
    for (int k = 0; k < kCopyUnroll; ++k) {
      if (dst[k] != nullptr) values[k].write(dst[k]);
    }
  }
}

// Divides the units of a launch into chunks, for num_items planes.
template <class Head>
void divide_into_chunks(Head& head, int width, int64_t num_items, const Context& context) {
  constexpr int64_t kChunkBytes = 32 << 10;
  const int64_t unit_bytes = static_cast<int64_t>(head.unit.num_vectors) * width;
  // Chunks of `spread` units give each multiprocessor about 8 thread blocks.
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

// Launches the copy of head.num_units units in all planes of `launch`. `link` is nullptr for a copy within the device.
template <int kWidth, class Launch>
void launch_units(Launch& launch, const Link* link, const Context& context) {
  auto& head = launch.head;
  if (head.num_units == 0) return;
  if (link == nullptr) {
    constexpr int64_t kMostThreadBlocks = 1 << 30;
    divide_into_chunks(head, kWidth, launch.num_items, context);
    const int64_t chunks = head.chunks_per_plane.signed_value() * launch.num_items;
    const auto thread_blocks = static_cast<unsigned>(std::min(chunks, kMostThreadBlocks));
    copy_units_kernel<kWidth><<<thread_blocks, kCopyThreads, 0, context.stream>>>(launch);
    return;
  }
  head.link = LinkOrder::of(*link, launch.num_items, head.num_units, head.unit.rows, head.unit.row_vectors.value);
  // The number of threads is calibrated for the kernel of swaps, whose address arithmetic is shorter. This kernel gets
  // twice as many threads if they write over the link, and three times as many if they read over it, because reads wait
  // longer. If the calibrated number is 0, it gets as many threads as the GPU runs at once. Small thread blocks spread
  // the address arithmetic over more multiprocessors.
  constexpr int kThreads = 256, kMostThreads = 2048;
  const int threads_for_each = link->is_dst_on_host ? 2 : 3;
  const int threads = link->threads > 0 ? threads_for_each * link->threads : kMostThreads * context.num_multiprocessors;
  const int thread_blocks = std::max(2, threads / kThreads);
  copy_units_over_link_kernel<kWidth><<<thread_blocks, kThreads, 0, context.stream>>>(launch);
}

}  // namespace multikv::gpu
