#include "moves.cuh"

namespace multikv::gpu {
namespace {

// Threads: x over the vectors of a head, y and blockIdx.y over heads, z and blockIdx.x over tokens. blockIdx.z: key or value.
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
    const Lane lane = {
        .source = static_cast<const char*>(w.source) + head * w.source_stride_head * source_element_bytes +
                  vector * Move::kSourceBytes,
        .cache = static_cast<char*>(w.cache) + head * w.cache_stride_head * cache_element_bytes +
                 vector * Move::kCacheBytes,
        .source_stride_token = w.source_stride_token * source_element_bytes,
        .cache_stride_block = w.cache_stride_block * cache_element_bytes,
        .cache_stride_slot = w.cache_stride_slot * cache_element_bytes,
    };
    const auto index_of = [&](int64_t token) { return p.slots.mapping.at(token); };
    write_tokens<Move, kUnroll>(p.slots, index_of, first, blockDim.z, lane, w.scale + head * w.scale_stride_head, p.format);
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

// The packed layout: a thread block takes tokens of one head.
constexpr int kThreads = 256;
constexpr int kTokens = 64;   // of a block
constexpr int kDims = 128;    // of a tile of values

// Keys: each vector goes as a whole into one of the cache. Threads: pairs of vectors first, for memory moves 32 bytes at
// least; then tokens, for their vectors are neighbours in the cache; then further vectors.
template <class Move>
__device__ inline void write_packed_keys(const ReshapeAndCacheParams& p, int64_t head) {
  constexpr int kPair = 2, kStep = 16, kUnroll = kTokens / kStep, kVectorThreads = kThreads / kStep;
  const PackedWrite& w = p.key;
  const int64_t source_bytes = num_bytes(p.dtype), cache_bytes = num_bytes(p.format, p.dtype);
  const int64_t vectors = p.head_size * source_bytes / Move::kSourceBytes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens + threadIdx.x / kPair % kStep;
  const auto index_of = [&](int64_t token) { return p.slots.mapping.at(token); };
  for (int64_t vector = threadIdx.x / (kPair * kStep) * kPair + threadIdx.x % kPair; vector < vectors;
       vector += kVectorThreads) {
    const int64_t element = vector * (Move::kCacheBytes / cache_bytes);
    const auto chunk = static_cast<int64_t>(w.vector_size.divide(element, high_product));
    const Lane lane = {
        .source = static_cast<const char*>(w.source) + head * w.source_stride_head * source_bytes +
                  vector * Move::kSourceBytes,
        .cache = static_cast<char*>(w.cache) +
                 (head * w.cache_stride_head + chunk * w.cache_stride_vector + element -
                  chunk * static_cast<int64_t>(w.vector_size.value)) * cache_bytes,
        .source_stride_token = w.source_stride_token * source_bytes,
        .cache_stride_block = w.cache_stride_block * cache_bytes,
        .cache_stride_slot = w.cache_stride_row * cache_bytes,
    };
    write_tokens<Move, kUnroll>(p.slots, index_of, first, kStep, lane, w.scale + head * w.scale_stride_head, p.format);
  }
}

// Values change places with tokens: through shared memory, as cache elements.
template <class Move, class Element>
__device__ inline void write_packed_values(const ReshapeAndCacheParams& p, int64_t head) {
  constexpr int kElementBytes = sizeof(Element), kVector = Move::kCacheBytes / kElementBytes;
  constexpr int kPitch = kDims * kElementBytes + 4;  // bytes; the tokens of a dimension lie in different banks
  constexpr int kUnroll = kVector == 1 ? 4 : kTokens * kDims / kVector / kThreads;
  __shared__ uint32_t words[kTokens * kPitch / 4];
  auto* elements = reinterpret_cast<char*>(words);
  const PackedWrite& w = p.value;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens;
  const int num_tokens = static_cast<int>(p.slots.num_tokens - first < kTokens ? p.slots.num_tokens - first : kTokens);
  const int64_t source_bytes = num_bytes(p.dtype), stride = w.source_stride_token * source_bytes;
  const char* source = static_cast<const char*>(w.source) + head * w.source_stride_head * source_bytes + first * stride;
  const auto scale = Move::scale(w.scale + head * w.scale_stride_head);

  // A group of 32 lanes writes two dimensions of 16 tokens: neighbours in the cache, if they are neighbours in a block of 16.
  const int token = threadIdx.x / 32 * 16 % kTokens + threadIdx.x % 16;
  const int64_t index = token < num_tokens ? p.slots.mapping.at(first + token) : -1;
  for (int64_t begin = 0; begin < p.head_size; begin += kDims) {
    const int dims = static_cast<int>(p.head_size - begin < kDims ? p.head_size - begin : kDims);
    const int vectors = dims / kVector, count = vectors * num_tokens;
    for (int round = threadIdx.x; round < count; round += kUnroll * kThreads) {
      typename Move::Source values[kUnroll];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int t = (round + i * kThreads) / vectors, vector = round + i * kThreads - t * vectors;
        if (t < num_tokens) {
          values[i] = Move::Source::read(source + t * stride + begin * source_bytes + vector * Move::kSourceBytes);
        }
      }
      const Move move(scale, p.format);
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int t = (round + i * kThreads) / vectors, vector = round + i * kThreads - t * vectors;
        if (t >= num_tokens) continue;
        const auto value = move(values[i]);
        char* at = elements + t * kPitch + vector * Move::kCacheBytes;
        if constexpr (Move::kCacheBytes < 4) {
          *reinterpret_cast<Element*>(at) = static_cast<Element>(value.words[0]);
        } else {
#pragma unroll
          for (int k = 0; k < Move::kCacheBytes / 4; ++k) reinterpret_cast<uint32_t*>(at)[k] = value.words[k];
        }
      }
    }
    __syncthreads();
    if (is_slot(p.slots, index)) {
      const auto [block, offset] = slot_of(p.slots, index);
      const auto group = static_cast<int64_t>(w.vector_size.divide(offset, high_product));
      Element* to = static_cast<Element*>(w.cache) + block * w.cache_stride_block + head * w.cache_stride_head +
                    group * w.cache_stride_vector + (offset - group * static_cast<int64_t>(w.vector_size.value));
      const auto* from = reinterpret_cast<const Element*>(elements + token * kPitch);
#pragma unroll 8
      for (int d = threadIdx.x / (2 * kTokens) * 2 + threadIdx.x / 16 % 2; d < dims; d += kThreads / kTokens) {
        to[(begin + d) * w.cache_stride_row] = from[d];
      }
    }
    __syncthreads();
  }
}

// blockIdx.x over tokens, y over heads, z: key or value.
template <class Move, class Element>
__global__ void __launch_bounds__(kThreads)
    reshape_and_cache_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheParams p, int64_t first_head) {
  const int64_t head = first_head + blockIdx.y;
  if (blockIdx.z == 0) write_packed_keys<Move>(p, head);
  else write_packed_values<Move, Element>(p, head);
}

}  // namespace

void launch(const ReshapeAndCacheFlashParams& p, const Context& context) {
  const int64_t source_bytes = num_bytes(p.dtype);
  const int64_t cache_bytes = num_bytes(p.format, p.dtype);
  const int source_width = std::min(source_alignment(p.key, source_bytes), source_alignment(p.value, source_bytes));
  const int cache_width = std::min(cache_alignment(p.key, cache_bytes), cache_alignment(p.value, cache_bytes));
  const auto shape_for = [&](int vector_bytes) {
    const int64_t head_size = std::max(p.key.head_size, p.value.head_size);
    return block_shape(head_size * source_bytes / vector_bytes, p.num_heads, p.slots.num_tokens);
  };
  with_moves(p.dtype, p.format, source_width, cache_width, [&]<class Short, class Long>() {
    launch_moves<Short, Long>(p.slots.num_tokens, 2, context, shape_for, [&]<class Move, int kUnroll>(const BlockShape& shape) {
      const int64_t tile = shape.threads.z * kUnroll;
      for_each_grid((p.slots.num_tokens + tile - 1) / tile, shape, 2, [&](dim3 grid, int64_t first_head) {
        reshape_and_cache_flash_kernel<Move, kUnroll><<<grid, shape.threads, 0, context.stream>>>(
            p, static_cast<int>(source_bytes), static_cast<int>(cache_bytes), first_head);
      });
    });
  });
}

void launch(const ReshapeAndCacheParams& p, const Context& context) {
  const int64_t source_bytes = num_bytes(p.dtype);
  const int64_t cache_bytes = num_bytes(p.format, p.dtype);
  const PackedWrite &k = p.key, &v = p.value;
  const auto source_width = [&](const PackedWrite& w) {
    return common_alignment(16, {address(w.source), p.head_size * source_bytes, w.source_stride_token * source_bytes,
                                 w.source_stride_head * source_bytes});
  };
  const int key_width = common_alignment(
      16, {address(k.cache), static_cast<int64_t>(k.vector_size.value) * cache_bytes, k.cache_stride_block * cache_bytes,
           k.cache_stride_head * cache_bytes, k.cache_stride_vector * cache_bytes, k.cache_stride_row * cache_bytes});
  const bool wide = std::min({key_width, source_width(k), source_width(v)}) == 16;
  const BlockShape shape = {dim3(kThreads), p.num_heads};
  const auto run = [&]<class Move, class Element>() {
    for_each_grid((p.slots.num_tokens - 1) / kTokens + 1, shape, 2, [&](dim3 grid, int64_t first_head) {
      reshape_and_cache_kernel<Move, Element><<<grid, shape.threads, 0, context.stream>>>(p, first_head);
    });
  };
  const auto quantise = [&]<Float kDtype>() {
    if (wide) run.template operator()<Quantise<kDtype, 16>, uint8_t>();
    else run.template operator()<Quantise<kDtype, 1>, uint8_t>();
  };
  const auto copy = [&]<class Element>() {
    if (wide) run.template operator()<Copy<16>, Element>();
    else run.template operator()<Copy<sizeof(Element)>, Element>();
  };
  if (p.format == CacheFormat::kSame) {
    return source_bytes == 4 ? copy.template operator()<uint32_t>() : copy.template operator()<uint16_t>();
  }
  with_dtype(p.dtype, quantise);
}

}  // namespace multikv::gpu
