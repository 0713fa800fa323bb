#include "cuda/swap/swap_kernel.h"

#include <algorithm>
#include <cstring>

#include "core/alignment.h"
#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/pack.cuh"
#include "vendor/driver.h"

namespace multikv::gpu {

// How the kernel divides its work. A block is copied in pieces, and each piece by a group of threads; the last piece of
// a block may be shorter.
//
//   block   | piece | piece | ... | last |
//   piece   kUnroll vectors for each of the 2^lanes_log2 threads of a group
struct SwapHead {
  int64_t unit_bytes, block_bytes;
  int64_t num_pieces;  // of all blocks of all layers
  Divisor pieces_per_block;
  Divisor num_pairs;
  int32_t num_layers;
  int32_t lanes_log2;  // 2^lanes_log2 threads are a group
  int32_t piece_bytes;
};

namespace {

// The parameters of a launch, which have kBytes bytes at most.
//
//   | head | SwapLayer[num_layers] | BlockPair[num_pairs] | unused |
template <int kBytes>
struct SwapLaunch {
  static constexpr int kPayload = (kBytes - static_cast<int>(sizeof(SwapHead))) / 16 * 16;
  SwapHead head;
  alignas(16) unsigned char payload[kPayload];

  __host__ __device__ const SwapLayer* layers() const { return reinterpret_cast<const SwapLayer*>(payload); }
  __host__ __device__ const BlockPair* pairs() const {
    return reinterpret_cast<const BlockPair*>(layers() + head.num_layers);
  }
};

// The bytes of the parameters. There are three sizes, because each launch copies all bytes of the parameters, also the
// unused ones. kMedium holds 2,048 pairs in 32 layers.
constexpr int kSmall = 4'000, kMedium = std::min(17'024, kMaxParameterBytes), kLarge = kMaxParameterBytes;

// The launch over a link (link_threads > 0) and the launch within a device (link_threads == 0):
//
//                   threads of a thread block   thread blocks   vectors in flight for each thread
//   over a link     up to kMostThreads          few             4
//   within device   kThreadsWithin              many            kUnrollWithin; 4 if narrower than 16 bytes
constexpr int kMostThreads = 1024, kThreadsWithin = 128, kUnrollWithin = 2;

// The start of a piece in src and in dst, and the number of bytes from there to the end of its block.
struct SwapPiece {
  const char* src;
  char* dst;
  int64_t left;
};

// Computes where piece i lies. i = (layer * num_pairs + pair) * pieces_per_block + piece of the block.
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

// Each group of threads copies a piece: a thread loads kUnroll vectors before it writes the first. Groups loop over the
// pieces with a grid-wide stride. With kLooksAhead, a thread computes where its next piece lies while the loads of this
// piece are in flight. Over a link, looking ahead issues the next loads sooner, and so fewer threads saturate the link.
// The variant for 16-byte vectors within a device (kUnrollWithin) does not look ahead: most threads have no next piece.
template <int kWidth, int kUnroll, int kBytes>
__global__ void __launch_bounds__(kMostThreads)
    swap_blocks_kernel(const MULTIKV_GRID_CONSTANT SwapLaunch<kBytes> launch) {
  constexpr bool kLooksAhead = kUnroll != kUnrollWithin;
  const SwapHead& h = launch.head;
  const int lanes = 1 << h.lanes_log2, lane = threadIdx.x & (lanes - 1);
  const int64_t groups_per_thread_block = blockDim.x >> h.lanes_log2;
  const int64_t step = gridDim.x * groups_per_thread_block;
  int64_t i = blockIdx.x * groups_per_thread_block + (threadIdx.x >> h.lanes_log2);
  SwapPiece next;
  // The lambda takes `launch` as an argument and does not capture it: HIP's compiler would copy captured parameters to
  // scratch memory.
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

// The calling thread's parameters of kBytes bytes. Every launch by the thread overwrites and reuses them.
template <int kBytes>
SwapLaunch<kBytes>& parameters() {
  static thread_local SwapLaunch<kBytes> launch;
  return launch;
}

// Returns the bytes of a vector, 16, 4 or 1: the widest access that the alignment of all addresses and sizes allows.
int vector_width(const SwapKernelWork& work) {
  AlignmentBits bits(work.unit_bytes | work.block_bytes);
  for (int64_t i = 0; i < work.num_layers; ++i) {
    bits = bits | AlignmentBits(work.layers[i].src) | AlignmentBits(work.layers[i].dst);
  }
  const int widest = bits.widest(16);
  return widest == 16 ? 16 : widest >= 4 ? 4 : 1;
}

}  // namespace

SwapKernel::SwapKernel(const SwapKernelWork& work, cudaStream_t stream) : work_(work), stream_(stream) {
  choose_parameters();
  divide_blocks();
}

template <int kBytes>
void SwapKernel::use_parameters() {
  head_ = &parameters<kBytes>().head;
  payload_ = parameters<kBytes>().payload;
  payload_bytes_ = SwapLaunch<kBytes>::kPayload;
  launch_ = &SwapKernel::launch<kBytes>;
}

void SwapKernel::choose_parameters() {
  const int64_t most_bytes = work_.most_pairs * sizeof(BlockPair) + work_.num_layers * sizeof(SwapLayer);
  if (most_bytes <= SwapLaunch<kSmall>::kPayload || !has_large_parameters()) use_parameters<kSmall>();
  else if (most_bytes <= SwapLaunch<kMedium>::kPayload) use_parameters<kMedium>();
  else use_parameters<kLarge>();
  // The layers of a launch take at most half of the payload, and the pairs get the rest.
  layers_per_launch_ =
      std::min<int64_t>(work_.num_layers, payload_bytes_ / 2 / static_cast<int64_t>(sizeof(SwapLayer)));
  pairs_ = reinterpret_cast<BlockPair*>(payload_ + layers_per_launch_ * sizeof(SwapLayer));
  max_pairs_ = (payload_bytes_ - layers_per_launch_ * sizeof(SwapLayer)) / sizeof(BlockPair);
}

void SwapKernel::divide_blocks() {
  SwapHead& h = *head_;
  h = {};
  h.unit_bytes = work_.unit_bytes;
  h.block_bytes = work_.block_bytes;
  width_ = vector_width(work_);
  unroll_ = work_.link_threads == 0 && width_ == 16 ? kUnrollWithin : 4;
  const int64_t vectors = ceil_div<int64_t>(work_.block_bytes, width_);
  while ((1 << h.lanes_log2) < vectors && h.lanes_log2 < 5) ++h.lanes_log2;
  h.piece_bytes = width_ * unroll_ << h.lanes_log2;
  h.pieces_per_block = Divisor::of(ceil_div<int64_t>(work_.block_bytes, h.piece_bytes));
}

cudaError_t SwapKernel::submit() {
  if (count_ == 0) return cudaSuccess;
  for (int64_t begin = 0; begin < work_.num_layers; begin += layers_per_launch_) {
    const int64_t layers = std::min(layers_per_launch_, work_.num_layers - begin);
    if (layers != layers_per_launch_) {  // the last launch has fewer layers: the pairs move up behind them
      std::memmove(payload_ + layers * sizeof(SwapLayer), pairs_, count_ * sizeof(BlockPair));
    }
    std::memcpy(payload_, work_.layers + begin, layers * sizeof(SwapLayer));
    SwapHead& h = *head_;
    h.num_layers = static_cast<int32_t>(layers);
    h.num_pairs = Divisor::of(count_);
    h.num_pieces = layers * count_ * h.pieces_per_block.signed_value();
    (this->*launch_)();
  }
  count_ = 0;
  return cudaGetLastError();
}

template <int kBytes>
void SwapKernel::launch() {
  if (width_ == 16 && unroll_ == kUnrollWithin) launch_as<16, kUnrollWithin, kBytes>();
  else if (width_ == 16) launch_as<16, 4, kBytes>();
  else if (width_ == 4) launch_as<4, 4, kBytes>();
  else launch_as<1, 4, kBytes>();
}

template <int kWidth, int kUnroll, int kBytes>
void SwapKernel::launch_as() {
  const SwapLaunch<kBytes>& filled = parameters<kBytes>();
  constexpr int64_t kMostThreadBlocks = 1 << 30;
  const int link_threads = work_.link_threads;
  // One multiprocessor cannot saturate a link, two can.
  const int link_thread_blocks = std::max(2, link_threads / kMostThreads);
  const int threads =
      link_threads == 0 ? kThreadsWithin : std::clamp(link_threads / link_thread_blocks / 32 * 32, 32, kMostThreads);
  const int64_t groups = threads >> filled.head.lanes_log2;
  const int64_t needed = ceil_div(filled.head.num_pieces, groups);
  const int64_t thread_blocks = std::min<int64_t>(needed, link_threads == 0 ? kMostThreadBlocks : link_thread_blocks);
  swap_blocks_kernel<kWidth, kUnroll, kBytes><<<static_cast<unsigned>(thread_blocks), threads, 0, stream_>>>(filled);
}

}  // namespace multikv::gpu
