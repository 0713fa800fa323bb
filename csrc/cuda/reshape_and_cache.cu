#include "grid.h"
#include "launch.h"
#include "vec.cuh"

namespace multikv::gpu {
namespace {

// What a thread reads before it writes: enough in flight to cover the latency of memory.
constexpr int kBytesInFlight = 128;

// How one thread's vector gets from the source to the cache: kSourceBytes in, kCacheBytes out. What it needs beside the vector
// (`Scale`) is loaded with it, and used when both are there.
template <int kWidth>
struct Copy {
  static constexpr int kSourceBytes = kWidth, kCacheBytes = kWidth;
  using Source = Vec<kWidth>;
  struct Scale {};
  __device__ static Scale scale(const CacheWrite&, int64_t) { return {}; }
  __device__ static Source read(const char* from) { return load<kWidth>(from); }
  __device__ Copy(Scale, CacheFormat) {}
  __device__ Vec<kWidth> operator()(const Source& source) const { return source; }
};

template <Float kDtype, int kElements>
struct Quantise {
  static constexpr int kSourceBytes = kElements * static_cast<int>(num_bytes(kDtype)), kCacheBytes = kElements;
  static constexpr int kLoadBytes = kSourceBytes < 16 ? kSourceBytes : 16;
  union Source {
    Vec<kLoadBytes> vecs[kSourceBytes / kLoadBytes];
    uint32_t words[(kSourceBytes + 3) / 4];
  };
  using Scale = float;
  Quotient quotient;
  CacheFormat format;

  __device__ static Scale scale(const CacheWrite& w, int64_t head) { return w.scale[head * w.scale_stride_head]; }
  __device__ static Source read(const char* from) {
    Source source;
#pragma unroll
    for (int i = 0; i < kSourceBytes / kLoadBytes; ++i) source.vecs[i] = load<kLoadBytes>(from + i * kLoadBytes);
    return source;
  }
  __device__ Quantise(Scale scale, CacheFormat format) : quotient(scale), format(format) {}
  __device__ Vec<kElements> operator()(const Source& source) const {
    return quantise<kDtype, kElements>(source.words, quotient, format);
  }
};

// Threads: x over the vectors of a head, y and blockIdx.y over heads, z and blockIdx.x over tokens, of which each thread
// takes kUnroll, all in flight before the first is written. blockIdx.z: key or value.
template <class Move, int kUnroll>
__global__ void __launch_bounds__(256)
    reshape_and_cache_flash_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheFlashParams p, int source_element_bytes,
                                   int cache_element_bytes, int64_t first_head) {
  const CacheWrite& w = blockIdx.z == 0 ? p.key : p.value;
  const int64_t head = first_head + blockIdx.y * blockDim.y + threadIdx.y;
  const int64_t vectors = w.head_size * source_element_bytes / Move::kSourceBytes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (blockDim.z * kUnroll) + threadIdx.z;
  if (head >= p.num_heads) return;
  for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
    const char* source = static_cast<const char*>(w.source) + head * w.source_stride_head * source_element_bytes +
                         vector * Move::kSourceBytes;
    char* cache = static_cast<char*>(w.cache) + head * w.cache_stride_head * cache_element_bytes +
                  vector * Move::kCacheBytes;
    const typename Move::Scale scale = Move::scale(w, head);
    typename Move::Source values[kUnroll];
    int64_t slots[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t token = first + i * blockDim.z;
      slots[i] = -1;
      if (token < p.num_tokens) {
        slots[i] = p.slot_mapping.at(token);
        values[i] = Move::read(source + token * (w.source_stride_token * source_element_bytes));
      }
    }
    const Move move(scale, p.format);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      // Unsigned: a negative slot (padding) is past the end too, and both are skipped.
      if (static_cast<uint64_t>(slots[i]) >= static_cast<uint64_t>(p.num_slots())) continue;
      const uint64_t block = p.block_size.divide(slots[i], high_product);
      const uint64_t offset = slots[i] - block * p.block_size.value;
      char* to = cache + block * (w.cache_stride_block * cache_element_bytes) +
                 offset * (w.cache_stride_slot * cache_element_bytes);
      store<Move::kCacheBytes>(to, move(values[i]));
    }
  }
}

template <class Move, int kUnroll>
void launch_shape(const ReshapeAndCacheFlashParams& p, const Context& context, const BlockShape& shape) {
  const int64_t tile = shape.threads.z * kUnroll;
  for_each_grid((p.num_tokens + tile - 1) / tile, shape, 2, [&](dim3 grid, int64_t first_head) {
    reshape_and_cache_flash_kernel<Move, kUnroll><<<grid, shape.threads, 0, context.stream>>>(
        p, static_cast<int>(num_bytes(p.dtype)), static_cast<int>(num_bytes(p.format, p.dtype)), first_head);
  });
}

template <class Move>
BlockShape shape_for(const ReshapeAndCacheFlashParams& p) {
  const int64_t head_size = std::max(p.key.head_size, p.value.head_size);
  return block_shape(head_size * num_bytes(p.dtype) / Move::kSourceBytes, p.num_heads, p.num_tokens);
}

// Few tokens: a short vector of one token each, for a short chain from load to store. So many that this would more than
// fill the GPU: long vectors of several tokens.
template <class Short, class Long>
void launch_moves(const ReshapeAndCacheFlashParams& p, const Context& context) {
  constexpr int kUnroll = Long::kSourceBytes < 16 ? 4 : kBytesInFlight / Long::kSourceBytes;
  const BlockShape shape = shape_for<Short>(p);
  if (p.num_tokens / shape.threads.z * shape.row_blocks * 2 <= 8 * context.num_multiprocessors) {
    launch_shape<Short, 1>(p, context, shape);
  } else {
    launch_shape<Long, kUnroll>(p, context, shape_for<Long>(p));
  }
}

template <Float kDtype>
void launch_quantise(const ReshapeAndCacheFlashParams& p, const Context& context, bool wide) {
  if (wide) {
    launch_moves<Quantise<kDtype, 8>, Quantise<kDtype, 16>>(p, context);
  } else {
    launch_moves<Quantise<kDtype, 1>, Quantise<kDtype, 1>>(p, context);
  }
}

// The widest access that suits one side (source or cache) of a write.
int source_alignment(const CacheWrite& w, int64_t element_bytes) {
  return common_alignment(16, {address(w.source), w.head_size * element_bytes, w.source_stride_token * element_bytes,
                               w.source_stride_head * element_bytes});
}
int cache_alignment(const CacheWrite& w, int64_t element_bytes) {
  return common_alignment(16, {address(w.cache), w.head_size * element_bytes, w.cache_stride_block * element_bytes,
                               w.cache_stride_slot * element_bytes, w.cache_stride_head * element_bytes});
}

}  // namespace

void launch(const ReshapeAndCacheFlashParams& p, const Context& context) {
  const int64_t source_bytes = num_bytes(p.dtype);
  const int64_t cache_bytes = num_bytes(p.format, p.dtype);
  const int source_width = std::min(source_alignment(p.key, source_bytes), source_alignment(p.value, source_bytes));
  const int cache_width = std::min(cache_alignment(p.key, cache_bytes), cache_alignment(p.value, cache_bytes));
  if (p.format != CacheFormat::kSame) {
    const bool wide = source_width == 16 && cache_width == 16;
    switch (p.dtype) {
      case Float::kFloat32: return launch_quantise<Float::kFloat32>(p, context, wide);
      case Float::kFloat16: return launch_quantise<Float::kFloat16>(p, context, wide);
      case Float::kBFloat16: return launch_quantise<Float::kBFloat16>(p, context, wide);
    }
  }
  switch (std::min(source_width, cache_width)) {
    case 16: return launch_moves<Copy<16>, Copy<16>>(p, context);
    case 8: return launch_moves<Copy<8>, Copy<8>>(p, context);
    case 4: return launch_moves<Copy<4>, Copy<4>>(p, context);
    default: return launch_moves<Copy<2>, Copy<2>>(p, context);
  }
}

}  // namespace multikv::gpu
