// copy_blocks_layers and zero_blocks.
#include "cuda/cache/block_vectors.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/indices.cuh"
#include "cuda/core/pack.cuh"

namespace multikv::gpu {
namespace {

// How a kernel divides blocks. A block is processed in pieces, and each piece by a group of threads of one warp.
//
//   block   | piece | piece | ... | last |
//   piece   kUnroll vectors for each of the 2^lanes_log2 threads of a group
struct Pieces {
  Divisor pieces_per_block;
  int32_t lanes_log2;

  static Pieces of(int64_t num_vectors, int unroll) {
    int lanes_log2 = 0;
    while ((1 << lanes_log2) < num_vectors && lanes_log2 < 5) ++lanes_log2;
    return {Divisor::of(ceil_div<int64_t>(num_vectors, unroll << lanes_log2)), lanes_log2};
  }
};

struct CopyHead {
  using Item = Plane;
  struct Entry {
    int64_t src, dst;
  };
  static constexpr int kUnroll = 2;

  BlockVectors blocks;
  Pieces pieces;
  bool are_entries_in_parameters;
  Indices mapping;  // if the pairs are in the memory of the device

  __device__ Entry load(int64_t i) const {
    const PrefetchedIndex src(mapping, i * mapping.stride), dst(mapping, i * mapping.stride + 1);
    return {src.value(), dst.value()};
  }
  __device__ bool is_skipped(const Entry& pair) const {
    return !is_valid(pair.src, blocks) || !is_valid(pair.dst, blocks) || pair.src == pair.dst;
  }
  // Copies the vectors first, first + lanes, ... that the block has, at most kUnroll of them.
  template <int kWidth, bool kStrided>
  __device__ void process(char* plane, const Entry& pair, int64_t first, int lanes) const {
    const char* from = plane + pair.src * blocks.stride_block_bytes;
    char* to = plane + pair.dst * blocks.stride_block_bytes;
    Pack<kWidth> values[kUnroll];
    int64_t offsets[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t vector = first + k * lanes;
      if (vector >= blocks.num_vectors) continue;
      offsets[k] = blocks.offset_bytes<kWidth, kStrided>(vector);
      values[k] = Pack<kWidth>::read(from + offsets[k]);
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      if (first + k * lanes < blocks.num_vectors) values[k].write(to + offsets[k]);
    }
  }
};

struct ZeroHead {
  using Item = Plane;
  struct Entry {
    int64_t block, first_token;
  };
  static constexpr int kUnroll = 4;

  BlockVectors blocks;
  Pieces pieces;
  bool are_entries_in_parameters;
  Indices block_ids, first_token;  // if the lists are in the memory of the device

  __device__ Entry load(int64_t i) const {
    const PrefetchedIndex block(block_ids, i);
    if (!first_token.is_given()) return {block.value(), 0};
    const PrefetchedIndex first(first_token, i);
    return {block.value(), first.value()};
  }
  __device__ bool is_skipped(const Entry& entry) const {
    // The comparison with num_vectors prevents an overflow of the product in process().
    return !is_valid(entry.block, blocks) || entry.first_token < 0 || entry.first_token >= blocks.num_vectors;
  }
  // Zeroes those of the vectors first, first + lanes, ... that belong to tokens from first_token on.
  template <int kWidth, bool kStrided>
  __device__ void process(char* plane, const Entry& entry, int64_t first, int lanes) const {
    char* to = plane + entry.block * blocks.stride_block_bytes;
    const int64_t begin = entry.first_token * blocks.token_vectors;
    const Pack<kWidth> zeros{};
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const int64_t vector = first + k * lanes;
      if (vector < begin || vector >= blocks.num_vectors) continue;
      zeros.write(to + blocks.offset_bytes<kWidth, kStrided>(vector));
    }
  }
};

constexpr int kMoveThreads = 128;

// Each group of threads processes a piece. Groups loop over the pieces with a grid-wide stride; blockIdx.y is the
// plane.
template <int kWidth, bool kStrided, PlanesHead Head, int kBytes>
__global__ void __launch_bounds__(kMoveThreads)
    process_blocks_kernel(const MULTIKV_GRID_CONSTANT PlanesLaunch<Head, kBytes> launch) {
  const Pieces& pieces = launch.head.pieces;
  const int lanes = 1 << pieces.lanes_log2, lane = threadIdx.x & (lanes - 1);
  const int groups = kMoveThreads >> pieces.lanes_log2;
  const int64_t num_pieces = launch.num_entries * pieces.pieces_per_block.signed_value();
  char* const plane = launch.items()[blockIdx.y].data;
  int64_t i = static_cast<int64_t>(blockIdx.x) * groups + (threadIdx.x >> pieces.lanes_log2);
  for (; i < num_pieces; i += static_cast<int64_t>(gridDim.x) * groups) {
    const auto number = static_cast<int64_t>(quotient_of(i, pieces.pieces_per_block));
    const int64_t piece = i - number * pieces.pieces_per_block.signed_value();
    const auto entry = launch.head.are_entries_in_parameters ? launch.entries()[number]
                                                             : launch.head.load(launch.first_entry + number);
    if (launch.head.is_skipped(entry)) continue;
    launch.head.template process<kWidth, kStrided>(plane, entry, piece * (Head::kUnroll << pieces.lanes_log2) + lane,
                                                   lanes);
  }
}

template <int kWidth, PlanesHead Head, int kBytes>
void launch_process(const PlanesLaunch<Head, kBytes>& launch, cudaStream_t stream) {
  const Pieces& pieces = launch.head.pieces;
  const int64_t num_pieces = launch.num_entries * pieces.pieces_per_block.signed_value();
  const int64_t needed = ceil_div<int64_t>(num_pieces, kMoveThreads >> pieces.lanes_log2);
  constexpr int64_t kMostThreadBlocks = 1 << 30;
  const dim3 grid(static_cast<unsigned>(std::min(needed, kMostThreadBlocks)), static_cast<unsigned>(launch.num_items));
  if (launch.head.blocks.num_dims == 0) {
    process_blocks_kernel<kWidth, false><<<grid, kMoveThreads, 0, stream>>>(launch);
  } else {
    process_blocks_kernel<kWidth, true><<<grid, kMoveThreads, 0, stream>>>(launch);
  }
}

// Launches the kernel of a CopyHead or a ZeroHead for every group of planes. set_lists(head) sets the lists.
template <PlanesHead Head, class SetLists, class EntryOf>
cudaError_t launch_all(const BlockPlanes& p, int64_t num_entries, const SetLists& set_lists, const EntryOf& entry_of,
                       cudaStream_t stream) {
  for (int64_t g = 0; g < p.planes.num_groups; ++g) {
    const PlaneGroup<BlockLayout>& group = p.planes.groups[g];
    const int widest = widest_vector(group), width = widest == 16 ? 16 : widest >= 4 ? 4 : 1;
    const BlockVectors blocks = BlockVectors::of(p, group.layout, width);
    Head head{};
    head.blocks = blocks;
    head.pieces = Pieces::of(blocks.num_vectors, Head::kUnroll);
    head.are_entries_in_parameters = p.are_lists_on_host;
    set_lists(head);
    const auto launch = [&]<int kBytes>(const PlanesLaunch<Head, kBytes>& parameters) {
      if (width == 16) launch_process<16>(parameters, stream);
      else if (width == 4) launch_process<4>(parameters, stream);
      else launch_process<1>(parameters, stream);
    };
    MULTIKV_RETURN_IF_FAILED(launch_group(head, group, num_entries, entry_of, launch));
  }
  return cudaSuccess;
}

}  // namespace

template <>
cudaError_t launch(const CopyBlocksLayersParams& p, const Context& context) {
  const Indices& mapping = p.block_mapping.indices;
  return launch_all<CopyHead>(
      p, p.block_mapping.size, [&](CopyHead& head) { head.mapping = mapping; },
      [&](int64_t i) { return CopyHead::Entry{mapping.at(i, 0), mapping.at(i, 1)}; }, context.stream);
}

template <>
cudaError_t launch(const ZeroBlocksParams& p, const Context& context) {
  const auto set_lists = [&](ZeroHead& head) {
    head.block_ids = p.block_ids.indices;
    head.first_token = p.first_token;
  };
  const auto entry_of = [&](int64_t i) {
    return ZeroHead::Entry{p.block_ids.indices.at(i), p.first_token.is_given() ? p.first_token.at(i) : 0};
  };
  return launch_all<ZeroHead>(p, p.block_ids.size, set_lists, entry_of, context.stream);
}

}  // namespace multikv::gpu
