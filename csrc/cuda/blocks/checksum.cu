// checksum_blocks.
#include <numeric>

#include "cuda/cache/block_vectors.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/indices.cuh"
#include "cuda/core/pack.cuh"

namespace multikv::gpu {
namespace {

struct ChecksumHead {
  using Item = Plane;
  struct Entry {
    int64_t block, num_tokens;  // num_tokens is -1 if the argument is not given: all bytes of the block are hashed
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

// Returns the sum of mix(word ^ (i + 1) * kStep) over the 8-byte words of a vector, where i is the index of the word in
// its block. `number` is i * kStep of the vector's first word.
__device__ uint64_t mixed(const Pack<16>& vector, uint64_t number) {
  const uint64_t first = vector.words[0] | static_cast<uint64_t>(vector.words[1]) << 32;
  const uint64_t second = vector.words[2] | static_cast<uint64_t>(vector.words[3]) << 32;
  return mix(first ^ (number + kStep)) + mix(second ^ (number + 2 * kStep));
}
__device__ uint64_t mixed(const Pack<8>& vector, uint64_t number) {
  return mix((vector.words[0] | static_cast<uint64_t>(vector.words[1]) << 32) ^ (number + kStep));
}

// Returns the thread's part of the sum over a block whose bytes are whole vectors of 8 or 16 bytes. The thread takes
// every vector whose number is threadIdx.x more than a multiple of blockDim.x. With kSteady the offsets of these
// vectors are step_bytes apart; otherwise each is computed from the number.
template <int kWidth, bool kSteady>
__device__ uint64_t sum_of_vectors(const BlockVectors& blocks, const char* block, int64_t num_bytes,
                                   int64_t step_bytes) {
  constexpr int kUnroll = 4, kWords = kWidth / 8;
  const int64_t num_vectors = num_bytes / kWidth;
  const int threads = static_cast<int>(blockDim.x);
  uint64_t sum = 0, number = threadIdx.x * (kWords * kStep);
  const uint64_t step = threads * (kWords * kStep);
  int64_t vector = threadIdx.x;
  const char* next = block + (blocks.num_dims == 0 ? vector * kWidth : blocks.offset_bytes<kWidth, true>(vector));
  const auto address = [&](int k) {
    return kSteady ? next + k * step_bytes : block + blocks.offset_bytes<kWidth, true>(vector + k * threads);
  };
  for (; vector + (kUnroll - 1) * threads < num_vectors; vector += kUnroll * threads) {
    Pack<kWidth> values[kUnroll];
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) values[k] = Pack<kWidth>::template read<true>(address(k));
    next += kUnroll * step_bytes;
#pragma unroll
    for (int k = 0; k < kUnroll; ++k, number += step) sum += mixed(values[k], number);
  }
#pragma unroll 1
  for (; vector < num_vectors; vector += threads, number += step, next += step_bytes) {
    sum += mixed(Pack<kWidth>::read(address(0)), number);
  }
  return sum;
}

// Returns the part of the sum for a block whose bytes need not be whole words, and may have any alignment.
__device__ uint64_t sum_of_bytes(const BlockVectors& blocks, const char* block, int64_t num_bytes) {
  uint64_t sum = 0;
  for (int64_t word = threadIdx.x; 8 * word < num_bytes; word += blockDim.x) {
    uint64_t bits = 0;
    for (int64_t i = 8 * word; i < 8 * word + 8 && i < num_bytes; ++i) {
      const char byte = block[blocks.num_dims == 0 ? i : blocks.offset_bytes<1, true>(i)];
      bits |= static_cast<uint64_t>(static_cast<uint8_t>(byte)) << (8 * (i & 7));
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
template <int kWidth, bool kSteady, int kBytes>
__global__ void __launch_bounds__(kMostChecksumThreads)
    checksum_blocks_kernel(const MULTIKV_GRID_CONSTANT PlanesLaunch<ChecksumHead, kBytes> launch,
                           const int64_t step_bytes) {
  const ChecksumHead& h = launch.head;
  const int64_t i = launch.first_entry + blockIdx.x;
  const auto entry = h.are_entries_in_parameters ? launch.entries()[blockIdx.x] : h.load(i);
  if (h.is_skipped(entry)) return;
  const Plane plane = launch.items()[blockIdx.y];
  const char* block = plane.data + entry.block * h.blocks.stride_block_bytes;
  const int64_t num_bytes = h.num_bytes(entry);
  uint64_t part;
  if constexpr (kWidth >= 8) part = sum_of_vectors<kWidth, kSteady>(h.blocks, block, num_bytes, step_bytes);
  else part = sum_of_bytes(h.blocks, block, num_bytes);
  const uint64_t sum = sum_of_threads(part);
  if (threadIdx.x != 0) return;
  auto* out = reinterpret_cast<uint64_t*>(h.out + i * h.out_stride_block_bytes) + plane.index;
  *out = mix(sum ^ static_cast<uint64_t>(num_bytes));
}

template <int kWidth, int kBytes>
void launch_checksum(const PlanesLaunch<ChecksumHead, kBytes>& launch, const BlockLayout& layout, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(launch.num_entries), static_cast<unsigned>(launch.num_items));
  const int64_t most = ceil_div<int64_t>(launch.head.block_bytes, std::max(kWidth, 8));
  const int64_t wanted = std::clamp<int64_t>(ceil_div<int64_t>(most, 32) * 32, 32, kMostChecksumThreads);
  // After `period` vectors the index of the outermost dimension advances by one.
  const StridedRows& rows = layout.rows;
  int64_t period = rows.num_dims == 0 ? 1 : rows.row_size / kWidth;
  for (int d = 0; d + 1 < rows.num_dims; ++d) period *= rows.size[d];
  period = std::max<int64_t>(period, 1);  // blocks may be empty
  const int64_t multiple = std::lcm<int64_t>(period, 32);
  const bool is_steady = multiple <= wanted;
  const int64_t threads = is_steady ? wanted / multiple * multiple : wanted;
  const auto block = static_cast<unsigned>(threads);
  if (is_steady) {
    const int64_t step_bytes =
        rows.num_dims == 0 ? threads * kWidth : threads / period * rows.src_stride[rows.num_dims - 1];
    checksum_blocks_kernel<kWidth, true><<<grid, block, 0, stream>>>(launch, step_bytes);
  } else {
    checksum_blocks_kernel<kWidth, false><<<grid, block, 0, stream>>>(launch, 0);
  }
}

}  // namespace

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
      if (width == 16) launch_checksum<16>(parameters, layout, context.stream);
      else if (width == 8) launch_checksum<8>(parameters, layout, context.stream);
      else launch_checksum<1>(parameters, layout, context.stream);
    };
    MULTIKV_RETURN_IF_FAILED(launch_group(head, group, p.block_ids.size, entry_of, launch));
  }
  return cudaSuccess;
}

}  // namespace multikv::gpu
