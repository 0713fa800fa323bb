// The kernel that copies blocks, wherever a GPU can read and write. Which blocks comes by value with the launch:
// nothing is uploaded, allocated or kept, and a CUDA graph holds it.
#pragma once

#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/vec.cuh"
#include "vendor/driver.h"

namespace multikv::gpu {

// Block ids of one pair, in units of SwapLaunch::unit_bytes.
struct BlockPair {
  uint32_t src, dst;
};

struct SwapHead {
  int64_t unit_bytes, block_bytes;
  int64_t num_pieces;  // of all blocks of all layers
  Divisor pieces_per_block;
  Divisor num_pairs;
  int32_t num_layers;
  int32_t lanes_log2;  // threads that share a piece
  int32_t piece_bytes;
};

template <int kBytes>
struct SwapLaunch {
  static constexpr int kPayload = (kBytes - static_cast<int>(sizeof(SwapHead))) / 16 * 16;
  SwapHead head;
  alignas(16) unsigned char payload[kPayload];  // SwapLayer[num_layers], then BlockPair[num_pairs]

  __host__ __device__ const SwapLayer* layers() const { return reinterpret_cast<const SwapLayer*>(payload); }
  __host__ __device__ const BlockPair* pairs() const {
    return reinterpret_cast<const BlockPair*>(layers() + head.num_layers);
  }
};

// Over a link, few threads with much in flight; within a device, many.
constexpr int kMostThreads = 1024, kThreadsWithin = 128, kUnrollWithin = 2;

// A part of a block, and what is left of the block from there on.
struct SwapPiece {
  const char* src;
  char* dst;
  int64_t left;
};

template <int kBytes>
__device__ SwapPiece piece_of(const SwapLaunch<kBytes>& launch, int64_t i) {
  const SwapHead& h = launch.head;
  uint64_t block = i, layer = 0;
  if (h.pieces_per_block.value != 1) block = quotient_of(i, h.pieces_per_block);
  const int64_t begin = (i - static_cast<int64_t>(block * h.pieces_per_block.value)) * h.piece_bytes;
  if (h.num_layers != 1) {
    layer = quotient_of(block, h.num_pairs);
    block -= layer * h.num_pairs.value;
  }
  const BlockPair pair = launch.pairs()[block];
  const SwapLayer tensors = launch.layers()[layer];
  return {static_cast<const char*>(tensors.src) + pair.src * h.unit_bytes + begin,
          static_cast<char*>(tensors.dst) + pair.dst * h.unit_bytes + begin, h.block_bytes - begin};
}

// A group of threads copies a piece of a block, kUnroll vectors each, all in flight before the first is written; groups
// take turns over the pieces of each block, of each pair, of each layer. Over a link they find out where the next piece
// is while they wait for this one: the sooner that is in flight, the fewer threads fill the link. Within a device most
// have no next, and those with 16-byte vectors do not look.
template <int kWidth, int kUnroll, int kBytes>
__global__ void __launch_bounds__(kMostThreads)
    swap_blocks_kernel(const MULTIKV_GRID_CONSTANT SwapLaunch<kBytes> launch) {
  constexpr bool kLooksAhead = kUnroll != kUnrollWithin;
  const SwapHead& h = launch.head;
  const int lanes = 1 << h.lanes_log2, lane = threadIdx.x & (lanes - 1);
  const int64_t groups_per_block = blockDim.x >> h.lanes_log2;
  const int64_t step = gridDim.x * groups_per_block;
  int64_t i = blockIdx.x * groups_per_block + (threadIdx.x >> h.lanes_log2);
  SwapPiece next;
  // Captured, the parameters would be copied to memory by HIP's compiler.
  const auto look_ahead = [&i, &next](const SwapLaunch<kBytes>& from) {
    if (kLooksAhead && i < from.head.num_pieces) next = piece_of(from, i);
  };
  look_ahead(launch);
  while (i < h.num_pieces) {
    const SwapPiece piece = kLooksAhead ? next : piece_of(launch, i);
    i += step;
    if (piece.left >= h.piece_bytes) {
      Pack<kWidth> values[kUnroll];
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) values[k] = Pack<kWidth>::read(piece.src + (k * lanes + lane) * kWidth);
      look_ahead(launch);
#pragma unroll
      for (int k = 0; k < kUnroll; ++k) values[k].write(piece.dst + (k * lanes + lane) * kWidth);
    } else {
      look_ahead(launch);
      for (int64_t at = lane * kWidth; at < piece.left; at += lanes * kWidth) {
        Pack<kWidth>::read(piece.src + at).write(piece.dst + at);
      }
    }
  }
}

// Collects pairs of blocks that are copied in every one of some layers, and launches when a launch is full.
class SwapKernel {
 public:
  // link_threads: those that copy, all together; 0: as many as there is work for. Few: what they have in flight fills a
  // link, and more would only stand in the way of others. See docs/swap.md.
  SwapKernel(const SwapLayer* layers, int64_t num_layers, int64_t unit_bytes, int64_t block_bytes, int64_t most_pairs,
             int link_threads, cudaStream_t stream)
      : layers_(layers), num_layers_(num_layers), link_threads_(link_threads), stream_(stream) {
    const int64_t most_bytes = most_pairs * sizeof(BlockPair) + num_layers * sizeof(SwapLayer);
    if (most_bytes <= SwapLaunch<kSmall>::kPayload || !has_large_parameters()) prepare<kSmall>();
    else if (most_bytes <= SwapLaunch<kMedium>::kPayload) prepare<kMedium>();
    else prepare<kLarge>();
    SwapHead& h = *head_;
    h = {};
    h.unit_bytes = unit_bytes;
    h.block_bytes = block_bytes;
    int64_t all = unit_bytes | block_bytes;
    for (int64_t i = 0; i < num_layers; ++i) all |= address(layers[i].src) | address(layers[i].dst);
    const int alignment = common_alignment(16, {all});
    width_ = alignment >= 4 ? alignment / 4 * 4 : 1;
    if (width_ == 8) width_ = 4;
    const int64_t vectors = (block_bytes + width_ - 1) / width_;
    while ((1 << h.lanes_log2) < vectors && h.lanes_log2 < 5) ++h.lanes_log2;
    unroll_ = link_threads == 0 && width_ == 16 ? kUnrollWithin : 4;
    h.piece_bytes = width_ * unroll_ << h.lanes_log2;
    h.pieces_per_block = Divisor::of((block_bytes + h.piece_bytes - 1) / h.piece_bytes);
    // The layers of one launch leave room for at least as many bytes of pairs.
    layers_per_launch_ = std::min<int64_t>(num_layers, payload_bytes_ / 2 / static_cast<int64_t>(sizeof(SwapLayer)));
    pairs_ = reinterpret_cast<BlockPair*>(payload_ + layers_per_launch_ * sizeof(SwapLayer));
    max_pairs_ = (payload_bytes_ - layers_per_launch_ * sizeof(SwapLayer)) / sizeof(BlockPair);
  }

  cudaError_t add(int64_t src_block, int64_t dst_block) {
    pairs_[count_++] = {static_cast<uint32_t>(src_block), static_cast<uint32_t>(dst_block)};
    return count_ == max_pairs_ ? submit() : cudaSuccess;
  }

  // To be called at the end.
  cudaError_t submit() {
    if (count_ == 0) return cudaSuccess;
    for (int64_t begin = 0; begin < num_layers_; begin += layers_per_launch_) {
      const int64_t layers = std::min(layers_per_launch_, num_layers_ - begin);
      if (layers != layers_per_launch_) {  // the last ones: pairs move up behind them
        std::memmove(payload_ + layers * sizeof(SwapLayer), pairs_, count_ * sizeof(BlockPair));
      }
      std::memcpy(payload_, layers_ + begin, layers * sizeof(SwapLayer));
      SwapHead& h = *head_;
      h.num_layers = static_cast<int32_t>(layers);
      h.num_pairs = Divisor::of(count_);
      h.num_pieces = layers * count_ * static_cast<int64_t>(h.pieces_per_block.value);
      (this->*launch_)();
    }
    count_ = 0;
    return cudaPeekAtLastError();
  }

 private:
  // Parameters of a launch: the driver copies all of them, so that those of 2,048 pairs in 32 layers have a size of
  // their own.
  static constexpr int kSmall = 4'000, kMedium = std::min(17'024, kMaxParameterBytes), kLarge = kMaxParameterBytes;

  template <int kBytes>
  static SwapLaunch<kBytes>& parameters() {
    static thread_local SwapLaunch<kBytes> launch;
    return launch;
  }
  template <int kBytes>
  void prepare() {
    head_ = &parameters<kBytes>().head;
    payload_ = parameters<kBytes>().payload;
    payload_bytes_ = SwapLaunch<kBytes>::kPayload;
    launch_ = &SwapKernel::launch<kBytes>;
  }
  template <int kBytes>
  void launch() {
    switch (width_) {
      case 16: return unroll_ == kUnrollWithin ? launch_as<16, kUnrollWithin, kBytes>() : launch_as<16, 4, kBytes>();
      case 4: return launch_as<4, 4, kBytes>();
      default: return launch_as<1, 4, kBytes>();
    }
  }
  template <int kWidth, int kUnroll, int kBytes>
  void launch_as() {
    const SwapLaunch<kBytes>& filled = parameters<kBytes>();
    constexpr int64_t kMostBlocks = 1 << 30;
    // Of two multiprocessors, each can fill half a link; one cannot fill all of it.
    const int link_blocks = std::max(2, link_threads_ / kMostThreads);
    const int threads =
        link_threads_ == 0 ? kThreadsWithin : std::clamp(link_threads_ / link_blocks / 32 * 32, 32, kMostThreads);
    const int64_t groups = threads >> filled.head.lanes_log2;
    const int64_t needed = (filled.head.num_pieces + groups - 1) / groups;
    const int64_t blocks = std::min<int64_t>(needed, link_threads_ == 0 ? kMostBlocks : link_blocks);
    swap_blocks_kernel<kWidth, kUnroll, kBytes><<<static_cast<unsigned>(blocks), threads, 0, stream_>>>(filled);
  }

  const SwapLayer* layers_;
  SwapHead* head_;  // of the parameters that are launched, as are these
  unsigned char* payload_;
  BlockPair* pairs_;
  int64_t payload_bytes_;
  void (SwapKernel::*launch_)();
  int64_t num_layers_, layers_per_launch_ = 1, max_pairs_ = 0, count_ = 0;
  int link_threads_, width_ = 1, unroll_ = 4;
  cudaStream_t stream_;
};

}  // namespace multikv::gpu
