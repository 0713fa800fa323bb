#include "grid.h"
#include "launch.h"
#include "vec.cuh"

namespace multikv::gpu {
namespace {

constexpr int kMaxTile = 32;              // tokens of a thread block: one per lane that looks them up
constexpr int64_t kTileBytes = 18 * 1024; // and what they should come to, so that the look-up is worth it
constexpr int kUnroll = 2;                // loads in flight per thread

// How many of `bounds[low, high)` are at most `token`, plus low, found by 32 lanes together: 32 probes a step.
__device__ inline int64_t count_at_most(const Indices& bounds, int64_t low, int64_t high, int64_t token,
                                         int lane) {
  while (low < high) {
    const int64_t step = (high - low + 31) / 32;
    const int64_t probe = low + (lane + 1) * step - 1;
    const uint32_t hits = ballot(probe < high && bounds.at(probe) <= token);
    low += __popc(hits) * step;
    high = low + step - 1 < high ? low + step - 1 : high;
  }
  return low;
}

// Byte offset in the cache of the entry for this output row; -1 where there is none.
__device__ inline int64_t source_offset(const CpGatherCacheParams& p, int64_t sequence, int64_t token) {
  if (sequence < 0 || sequence >= p.num_sequences) return -1;
  const int64_t start = p.seq_starts.data == nullptr ? 0 : p.seq_starts.at(sequence);
  const int64_t begin = p.cu_seq_lens.at(sequence);
  if (start < 0 || begin < 0 || begin > token) return -1;
  const uint64_t position = static_cast<uint64_t>(start) + static_cast<uint64_t>(token - begin);
  const uint64_t block = p.block_size.divide(position, high_product);
  if (block >= static_cast<uint64_t>(p.blocks_per_sequence)) return -1;
  const int64_t id = p.block_table.at(sequence, block);
  if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(p.num_blocks)) return -1;
  const auto offset = static_cast<int64_t>(position - block * p.block_size.value);
  return id * p.src_stride_block_bytes + offset * p.src_stride_slot_bytes;
}

// The first warp looks up the tile's tokens, one per lane, into `sources`.
__device__ inline void look_up(const CpGatherCacheParams& p, int64_t first, int num_tokens, int lane,
                               int64_t* sources) {
  const int64_t end = p.num_sequences + 1;
  const int64_t low = count_at_most(p.cu_seq_lens, 0, end, first, lane);
  // Most tiles lie in one sequence; the last token tells.
  int64_t next = low;
  int64_t high = num_tokens == 1 ? low : count_at_most(p.cu_seq_lens, low, end, first + num_tokens - 1, lane);
  while (next < high) {
    const int64_t middle = (next + high) / 2;
    if (p.cu_seq_lens.at(middle) <= first + lane) next = middle + 1;
    else high = middle;
  }
  if (lane < num_tokens) sources[lane] = source_offset(p, next - 1, first + lane);
}

// A thread block copies the entries of `tile` output rows. Threads: x over the vectors of an entry's row, y and blockIdx.y
// over its rows, z over tokens.
template <int kWidth>
__global__ void __launch_bounds__(256)
    cp_gather_cache_kernel(const MULTIKV_GRID_CONSTANT CpGatherCacheParams p, int tile, int64_t first_row) {
  __shared__ int64_t sources[kMaxTile];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * tile;
  const int num_tokens = static_cast<int>(p.num_tokens - first < tile ? p.num_tokens - first : tile);
  const uint32_t thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  if (thread < 32) look_up(p, first, num_tokens, thread, sources);
  __syncthreads();

  int64_t row = first_row + blockIdx.y * blockDim.y + threadIdx.y;
  if (row >= p.entry.num_rows) return;
  const char* src = static_cast<const char*>(p.src_cache);
  char* dst = static_cast<char*>(p.dst) + first * p.dst_stride_token_bytes;
  for (int d = 0; d < p.entry.num_dims; ++d) {
    const int64_t index = d + 1 < p.entry.num_dims ? row % p.entry.size[d] : row;
    if (d + 1 < p.entry.num_dims) row /= p.entry.size[d];
    src += index * p.entry.src_stride_bytes[d];
    dst += index * p.entry.dst_stride_bytes[d];
  }
  for (int64_t column = threadIdx.x * kWidth; column < p.entry.row_bytes; column += blockDim.x * kWidth) {
    for (int i = threadIdx.z; i < num_tokens; i += kUnroll * blockDim.z) {
      Vec<kWidth> vectors[kUnroll];
      bool found[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        const int t = i + k * blockDim.z;
        found[k] = t < num_tokens && sources[t] >= 0;
        if (found[k]) vectors[k] = load<kWidth>(src + sources[t] + column);
      }
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) {
        if (found[k]) store<kWidth>(dst + (i + k * blockDim.z) * p.dst_stride_token_bytes + column, vectors[k]);
      }
    }
  }
}

template <int kWidth>
void launch_width(const CpGatherCacheParams& p, const Context& context) {
  // Tiles small enough to occupy every multiprocessor a few times over.
  const int64_t spread = (p.num_tokens + 4 * context.num_multiprocessors - 1) / (4 * context.num_multiprocessors);
  const int64_t enough = std::clamp<int64_t>(kTileBytes / (p.entry.num_rows * p.entry.row_bytes), 1, kMaxTile);
  const auto tile = static_cast<int>(std::min(spread, enough));
  BlockShape shape = block_shape(p.entry.row_bytes / kWidth, p.entry.num_rows, tile);
  const unsigned others = shape.threads.y * shape.threads.z;
  shape.threads.x = std::max(shape.threads.x, (32 + others - 1) / others);  // a whole warp looks up
  const int64_t tiles = (p.num_tokens + tile - 1) / tile;
  for_each_grid(tiles, shape, 1, [&](dim3 grid, int64_t first_row) {
    cp_gather_cache_kernel<kWidth><<<grid, shape.threads, 0, context.stream>>>(p, tile, first_row);
  });
}

// The widest access that suits all addresses and strides.
int width_of(const CpGatherCacheParams& p) {
  const Entry& e = p.entry;
  int64_t strides = 0;
  for (int d = 0; d < e.num_dims; ++d) strides |= e.src_stride_bytes[d] | e.dst_stride_bytes[d];
  return common_alignment(16, {address(p.src_cache), address(p.dst), e.row_bytes, p.src_stride_block_bytes,
                               p.src_stride_slot_bytes, p.dst_stride_token_bytes, strides});
}

}  // namespace

void launch(const CpGatherCacheParams& p, const Context& context) {
  switch (width_of(p)) {
    case 16: return launch_width<16>(p, context);
    case 8: return launch_width<8>(p, context);
    case 4: return launch_width<4>(p, context);
    case 2: return launch_width<2>(p, context);
    default: return launch_width<1>(p, context);
  }
}

}  // namespace multikv::gpu
