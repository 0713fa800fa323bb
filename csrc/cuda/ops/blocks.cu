#include "cuda/cache/planes.cuh"
#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/indices.cuh"
#include "cuda/core/pack.cuh"
#include "cuda/launch.h"
#include "params/blocks_params.h"

namespace multikv::gpu {
namespace {

// The blocks of a group of planes, in vectors of `width` bytes. Vectors are numbered in the order of the rows.
struct BlockVectors {
  int64_t stride_block_bytes, num_blocks;
  int64_t num_vectors;    // of a block
  int64_t token_vectors;  // of a token
  Divisor row_vectors;
  int32_t num_dims;
  Divisor size[StridedRows::kMaxDims];
  int64_t stride_bytes[StridedRows::kMaxDims];

  static BlockVectors of(const BlockPlanes& p, const BlockLayout& layout, int width) {
    const StridedRows& rows = layout.rows;
    BlockVectors blocks{};
    blocks.stride_block_bytes = layout.stride_block_bytes;
    blocks.num_blocks = p.num_blocks;
    blocks.num_vectors = rows.num_elements() / width;
    blocks.token_vectors = layout.token_bytes / width;
    blocks.row_vectors = Divisor::of(std::max<int64_t>(rows.row_size / width, 1));
    blocks.num_dims = rows.num_dims;
    for (int d = 0; d < rows.num_dims; ++d) {
      blocks.size[d] = Divisor::of(std::max<int64_t>(rows.size[d], 1));
      blocks.stride_bytes[d] = rows.src_stride[d];
    }
    return blocks;
  }

  // Returns the offset of a vector from the start of its block. Blocks that are not kStrided are one row.
  template <int kWidth, bool kStrided>
  __device__ int64_t offset_bytes(int64_t vector) const {
    if constexpr (!kStrided) return vector * kWidth;
    auto row = static_cast<int64_t>(quotient_of(vector, row_vectors));
    int64_t bytes = (vector - row * row_vectors.signed_value()) * kWidth;
    for (int d = 0; d + 1 < num_dims; ++d) {
      const auto outer = static_cast<int64_t>(quotient_of(row, size[d]));
      bytes += (row - outer * size[d].signed_value()) * stride_bytes[d];
      row = outer;
    }
    return bytes + row * stride_bytes[num_dims - 1];
  }
};

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

__device__ bool is_valid(int64_t block, const BlockVectors& blocks) { return block >= 0 && block < blocks.num_blocks; }

struct CopyHead {
  using Item = Plane;
  struct Entry {
    int64_t src, dst;
  };
  static constexpr int kUnroll = 2;

  BlockVectors blocks;
  Pieces pieces;
  bool are_entries_in_parameters;
  Indices mapping;  // if not

  __device__ Entry load(int64_t i) const {
    const PrefetchedIndex src(mapping, i * mapping.stride), dst(mapping, i * mapping.stride + 1);
    return {src.value(), dst.value()};
  }
  __device__ bool is_skipped(const Entry& pair) const {
    return !is_valid(pair.src, blocks) || !is_valid(pair.dst, blocks) || pair.src == pair.dst;
  }
  // Copies vectors first, first + lanes, ..., those that there are.
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
  Indices block_ids, first_token;  // if not

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
  // Zeroes vectors first, first + lanes, ..., those that belong to tokens from first_token on.
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

struct ChecksumHead {
  using Item = Plane;
  struct Entry {
    int64_t block, num_tokens;  // num_tokens is -1 for whole blocks if the argument num_tokens is not given
  };

  BlockVectors blocks;
  bool are_entries_in_parameters;
  bool are_tokens_given;
  Indices block_ids, num_tokens;
  int64_t block_size, token_bytes, block_bytes;
  char* out;
  int64_t out_stride_block_bytes;

  __device__ Entry load(int64_t i) const {
    const PrefetchedIndex block(block_ids, i);
    if (!are_tokens_given) return {block.value(), -1};
    const PrefetchedIndex tokens(num_tokens, i);
    return {block.value(), tokens.value()};
  }
  __device__ bool is_skipped(const Entry& entry) const {
    return !is_valid(entry.block, blocks) ||
           (are_tokens_given && (entry.num_tokens < 0 || entry.num_tokens > block_size));
  }
  __device__ int64_t num_bytes(const Entry& entry) const {
    return are_tokens_given ? entry.num_tokens * token_bytes : block_bytes;
  }
};

constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

// The last steps of the random number generator splitmix64.
__device__ uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Returns mix() of the words of a vector, of which the first has the number `number` / kStep + 1.
__device__ uint64_t mixed(const Pack<16>& vector, uint64_t number) {
  const uint64_t first = vector.words[0] | static_cast<uint64_t>(vector.words[1]) << 32;
  const uint64_t second = vector.words[2] | static_cast<uint64_t>(vector.words[3]) << 32;
  return mix(first ^ (number + kStep)) + mix(second ^ (number + 2 * kStep));
}
__device__ uint64_t mixed(const Pack<8>& vector, uint64_t number) {
  return mix((vector.words[0] | static_cast<uint64_t>(vector.words[1]) << 32) ^ (number + kStep));
}

// Returns the thread's part of the sum over a block whose bytes are whole vectors of 8 or 16 bytes.
template <int kWidth, bool kStrided>
__device__ uint64_t sum_of_vectors(const BlockVectors& blocks, const char* block, int64_t num_bytes) {
  constexpr int kUnroll = 4, kWords = kWidth / 8;
  const int64_t num_vectors = num_bytes / kWidth;
  const int threads = static_cast<int>(blockDim.x);
  uint64_t sum = 0, number = threadIdx.x * (kWords * kStep);
  const uint64_t step = threads * (kWords * kStep);
  int64_t vector = threadIdx.x;
  for (; vector + (kUnroll - 1) * threads < num_vectors; vector += kUnroll * threads) {
    Pack<kWidth> values[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      values[k] =
          Pack<kWidth>::template read<true>(block + blocks.offset_bytes<kWidth, kStrided>(vector + k * threads));
    }
#pragma unroll
    for (int k = 0; k < kUnroll; ++k, number += step) sum += mixed(values[k], number);
  }
  for (; vector < num_vectors; vector += threads, number += step) {
    sum += mixed(Pack<kWidth>::read(block + blocks.offset_bytes<kWidth, kStrided>(vector)), number);
  }
  return sum;
}

// The same for bytes that need not be whole words, and may have any alignment.
template <bool kStrided>
__device__ uint64_t sum_of_bytes(const BlockVectors& blocks, const char* block, int64_t num_bytes) {
  uint64_t sum = 0;
  for (int64_t word = threadIdx.x; 8 * word < num_bytes; word += blockDim.x) {
    uint64_t bits = 0;
    for (int i = 0; i < 8 && 8 * word + i < num_bytes; ++i) {
      const char byte = block[blocks.offset_bytes<1, kStrided>(8 * word + i)];
      bits |= static_cast<uint64_t>(static_cast<uint8_t>(byte)) << (8 * i);
    }
    sum += mix(bits ^ ((word + 1) * kStep));
  }
  return sum;
}

constexpr int kMostChecksumThreads = 256;

// Returns the sum of `value` over all threads of the thread block to thread 0.
__device__ uint64_t sum_of_threads(uint64_t value) {
  __shared__ uint64_t sums[kMostChecksumThreads / 32];
  const int lane = threadIdx.x & 31;
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle(value, lane ^ mask);
  if (lane == 0) sums[threadIdx.x / 32] = value;
  __syncthreads();
  uint64_t sum = 0;
  for (int i = 0; threadIdx.x == 0 && i < static_cast<int>(blockDim.x) / 32; ++i) sum += sums[i];
  return sum;
}

// A thread block hashes a block of one plane: blockIdx.x is the entry, blockIdx.y the plane.
template <int kWidth, bool kStrided, int kBytes>
__global__ void __launch_bounds__(kMostChecksumThreads)
    checksum_blocks_kernel(const MULTIKV_GRID_CONSTANT PlanesLaunch<ChecksumHead, kBytes> launch) {
  const ChecksumHead& h = launch.head;
  const int64_t i = launch.first_entry + blockIdx.x;
  const auto entry = h.are_entries_in_parameters ? launch.entries()[blockIdx.x] : h.load(i);
  if (h.is_skipped(entry)) return;
  const Plane plane = launch.items()[blockIdx.y];
  const char* block = plane.data + entry.block * h.blocks.stride_block_bytes;
  const int64_t num_bytes = h.num_bytes(entry);
  uint64_t part;
  if constexpr (kWidth >= 8) part = sum_of_vectors<kWidth, kStrided>(h.blocks, block, num_bytes);
  else part = sum_of_bytes<kStrided>(h.blocks, block, num_bytes);
  const uint64_t sum = sum_of_threads(part);
  if (threadIdx.x != 0) return;
  auto* out = reinterpret_cast<uint64_t*>(h.out + i * h.out_stride_block_bytes) + plane.index;
  *out = mix(sum ^ static_cast<uint64_t>(num_bytes));
}

// Returns the bytes, up to 16, of the widest vectors that the planes of a group allow.
int widest_vector(const PlaneGroup<BlockLayout>& group) {
  const BlockLayout& layout = group.layout;
  AlignmentBits bits = layout.rows.src_alignment_bits() | layout.stride_block_bytes | layout.token_bytes;
  for (int64_t i = 0; i < group.num_planes; ++i) bits = bits | AlignmentBits(group.planes[i].data);
  return bits.widest(16);
}

// Launches the kernels for one group of planes. See launch_planes() for the last two arguments.
template <PlanesHead Head, class EntryOf, class Launch>
cudaError_t launch_group(const Head& head, const PlaneGroup<BlockLayout>& group, int64_t num_entries,
                         const EntryOf& entry_of, const Launch& launch) {
  const PlanesWork<Head> work{group.planes, group.num_planes, num_entries};
  if (head.are_entries_in_parameters) launch_planes(head, work, entry_of, launch);
  else launch_planes(head, work, nullptr, launch);
  return cudaGetLastError();
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
    Head head{blocks, Pieces::of(blocks.num_vectors, Head::kUnroll), p.are_lists_on_host};
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

template <int kWidth, int kBytes>
void launch_checksum(const PlanesLaunch<ChecksumHead, kBytes>& launch, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(launch.num_entries), static_cast<unsigned>(launch.num_items));
  const int64_t most = ceil_div<int64_t>(launch.head.block_bytes, std::max(kWidth, 8));
  const int threads = static_cast<int>(std::clamp<int64_t>(ceil_div<int64_t>(most, 32) * 32, 32, kMostChecksumThreads));
  if (launch.head.blocks.num_dims == 0) checksum_blocks_kernel<kWidth, false><<<grid, threads, 0, stream>>>(launch);
  else checksum_blocks_kernel<kWidth, true><<<grid, threads, 0, stream>>>(launch);
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

template <>
cudaError_t launch(const ChecksumBlocksParams& p, const Context& context) {
  const auto entry_of = [&](int64_t i) {
    return ChecksumHead::Entry{p.block_ids.indices.at(i), p.num_tokens.is_given() ? p.num_tokens.at(i) : -1};
  };
  for (int64_t g = 0; g < p.planes.num_groups; ++g) {
    const PlaneGroup<BlockLayout>& group = p.planes.groups[g];
    const BlockLayout& layout = group.layout;
    const int widest = widest_vector(group), width = widest >= 8 ? widest : 1;
    const ChecksumHead head{BlockVectors::of(p, layout, width),
                            p.are_lists_on_host,
                            p.num_tokens.is_given(),
                            p.block_ids.indices,
                            p.num_tokens,
                            p.block_size,
                            layout.token_bytes,
                            layout.rows.num_elements(),
                            p.out,
                            p.out_stride_block_bytes};
    const auto launch = [&]<int kBytes>(const PlanesLaunch<ChecksumHead, kBytes>& parameters) {
      if (width == 16) launch_checksum<16>(parameters, context.stream);
      else if (width == 8) launch_checksum<8>(parameters, context.stream);
      else launch_checksum<1>(parameters, context.stream);
    };
    MULTIKV_RETURN_IF_FAILED(launch_group(head, group, p.block_ids.size, entry_of, launch));
  }
  return cudaSuccess;
}

}  // namespace multikv::gpu
