#include <algorithm>

#include "cuda/cache/packed_keys.cuh"
#include "cuda/cache/packed_values.cuh"
#include "cuda/cache/write_tokens.cuh"
#include "params/reshape_and_cache_params.h"

namespace multikv::gpu {
namespace {

// Writes keys and values to caches of the flash layout.
//
//   threadIdx  x: vectors of a head   y: heads                    z: tokens
//   blockIdx   x: chunks of tokens    y: heads, from first_head   z: keys, values
template <class Move, int kUnroll>
__global__ void __launch_bounds__(kMaxThreads)
    reshape_and_cache_flash_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheFlashParams p, int64_t first_head) {
  const FlashWrite& write = blockIdx.z == 0 ? p.key : p.value;
  const int64_t head = first_head + blockIdx.y * blockDim.y + threadIdx.y;
  const bool is_head = head < p.num_heads;
  const ChunkPart part = {
      .first_token = static_cast<int64_t>(blockIdx.x) * (blockDim.z * kUnroll),
      .token = static_cast<int>(threadIdx.z),
      .token_step = static_cast<int>(blockDim.z),
      .vector = threadIdx.x,
      .vector_step = blockDim.x,
      .num_vectors = is_head ? num_vectors<Move>(write.source.head_bytes) : 0,
  };
  const auto pointers_of = [&](int64_t vector) -> VectorPointers {
    return {write.source.head(0, head) + vector * Move::kSourceBytes,
            write.cache.head({0, 0}, head) + vector * Move::kCacheBytes, write.source.stride_token_bytes};
  };
  const TokenDestination to = {p.slots.num_tokens,
                               {p.blocks(), write.cache.stride_block_bytes, write.cache.stride_slot_bytes},
                               write.cache.scale_of(is_head ? head : 0),
                               p.codec().element};
  const auto index_of = [&](int64_t token) { return PrefetchedIndex(p.slots.mapping, token); };
  write_tokens<Move, kUnroll>(to, part, index_of, pointers_of);
}

AlignmentBits cache_alignment_bits(const FlashWrite& write) {
  return write.cache.alignment_bits() | write.cache.codec.num_bytes(write.head_size);
}

// The minimum number of resident thread blocks per multiprocessor of the packed layout's kernel. Narrow copies need
// fewer registers.
template <class Move, class Stored>
constexpr int kPackedBlocks = Move::kSourceBytes < 16 && sizeof(Stored) > 1 ? 8 : 7;

// Writes keys and values to caches of the packed layout. A thread block writes kTokens tokens of one head. Heads come
// before tokens in the grid, so that thread blocks that read neighbouring memory run together.
//
//   blockIdx  y: chunks of tokens
//             if gridDim.x == 2 * num_heads   x: heads of keys, then heads of values   z: 0
//             if gridDim.x == num_heads       x: heads                                 z: keys, values
template <class Move, class Stored, int kTokens>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, (kPackedBlocks<Move, Stored>))
    reshape_and_cache_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheParams p, int64_t first_chunk) {
  const int64_t first = (first_chunk + blockIdx.y) * kTokens;
  const int64_t head = blockIdx.x + blockIdx.z * p.num_heads;
  if (head < p.num_heads) write_packed_keys<Move, sizeof(Stored), kTokens>(p, head, first);
  else
    write_packed_values<Move, Stored, kTokens>(p, head - p.num_heads, first,
                                               [&p](int64_t token) { return p.slots.mapping.at(token); });
}

// The packed layout for few tokens, which are written element by element: the shortest chain from load to store.
//
//   threadIdx  x: dimensions
//   blockIdx   x: tokens   y: heads, from first_head   z: keys, values
template <class Move>
__global__ void __launch_bounds__(kThreads)
    reshape_and_cache_elements_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheParams p, int64_t first_head) {
  const bool is_key = blockIdx.z == 0;
  const TokenHeads& source = is_key ? p.key.source : p.value.source;
  const PackedCache& cache = is_key ? static_cast<const PackedCache&>(p.key.cache) : p.value.cache;
  const int64_t token = blockIdx.x, head = first_head + blockIdx.y;
  const auto scale = Move::scale(cache.scale_of(head));
  const int64_t index = p.slots.mapping.at(token);
  const char* from = source.head(token, head);
  for (int64_t dim = threadIdx.x; dim < p.head_size; dim += kThreads) {
    const auto value = Move::Source::read(from + dim * Move::kSourceBytes);
    if (!is_slot(p.blocks(), index)) return;
    const auto [block, offset] = split(p.blocks(), index);
    // `packed` is the index along the dimension that the layout splits into vectors of vector_size: the dimension of
    // the head for keys, the offset for values. `row` is the index along the other dimension.
    const int64_t row = is_key ? offset : dim, packed = is_key ? dim : offset;
    char* to = cache.block(block) + cache.offset_bytes(head, row, packed, Move::kCacheBytes, divide_index);
    Move(scale, p.codec().element)(value).write(to);
  }
}

template <class Move, class Stored, int kTokens>
void launch_chunks(const ReshapeAndCacheParams& p, const Context& context) {
  // for_each_grid() divides the rows over gridDim.y. Here, the rows are chunks of tokens, and gridDim.x counts heads.
  const BlockShape shape = {dim3(kThreads), ceil_div<int64_t>(p.slots.num_tokens, kTokens)};
  // Copies write keys and values side by side. Quantisation writes the values after the keys: its code for keys and for
  // values is large, and side by side the two would stall on instruction fetches (docs/performance.md).
  const int64_t planes_in_x = p.codec().is_float() ? 2 : 1;
  for_each_grid(planes_in_x * p.num_heads, shape, 2 / planes_in_x, [&](dim3 grid, int64_t first_row) {
    reshape_and_cache_kernel<Move, Stored, kTokens>
        <<<grid, shape.threads, 0, context.stream>>>(p, first_row / shape.threads.y);
  });
}

// Whether keys and values can be read, and keys written, by accesses of 16 bytes. locate_values() checks the alignment
// of the value cache.
bool is_wide(const ReshapeAndCacheParams& p) {
  const AlignmentBits bits = p.key.source.alignment_bits() | p.value.source.alignment_bits() |
                             p.key.cache.alignment_bits() | p.codec().num_bytes(p.key.cache.vector_size.signed_value());
  return bits.widest(16) == 16;
}

// Wide moves vectors of several elements, Narrow moves single elements.
template <class Wide, class Narrow, class Stored>
void launch_packed(const ReshapeAndCacheParams& p, const Context& context) {
  constexpr int kManyTokens = 64, kFewTokens = 16;
  if (p.slots.num_tokens <= kFewTokens) {
    const BlockShape shape = {dim3(kThreads), p.num_heads};
    return for_each_grid(p.slots.num_tokens, shape, 2, [&](dim3 grid, int64_t first_head) {
      reshape_and_cache_elements_kernel<Narrow><<<grid, shape.threads, 0, context.stream>>>(p, first_head);
    });
  }
  if (!is_wide(p)) return launch_chunks<Narrow, Stored, kRun>(p, context);
  // Whether chunks of kManyTokens would give each multiprocessor at most 4 thread blocks.
  const bool is_small = p.slots.num_tokens / kManyTokens * 2 * p.num_heads <= 4 * context.num_multiprocessors;
  if (is_small) launch_chunks<Wide, Stored, kRun>(p, context);
  else launch_chunks<Wide, Stored, kManyTokens>(p, context);
}

}  // namespace

template <>
cudaError_t launch(const ReshapeAndCacheFlashParams& p, const Context& context) {
  const int source_width = (p.key.source.alignment_bits() | p.value.source.alignment_bits()).widest(16);
  const int cache_width = (cache_alignment_bits(p.key) | cache_alignment_bits(p.value)).widest(16);
  with_moves(p.dtype, p.codec(), source_width, cache_width, [&]<class Move>() {
    const int64_t vectors = num_vectors<Move>(std::max(p.key.source.head_bytes, p.value.source.head_bytes));
    const BlockShape shape = block_shape(vectors, p.num_heads, p.slots.num_tokens);
    launch_moves<Move>(p.slots.num_tokens, 2, context, shape, [&]<int kUnroll>() {
      const int64_t chunk = shape.threads.z * kUnroll;
      for_each_grid(ceil_div(p.slots.num_tokens, chunk), shape, 2, [&](dim3 grid, int64_t first_head) {
        reshape_and_cache_flash_kernel<Move, kUnroll><<<grid, shape.threads, 0, context.stream>>>(p, first_head);
      });
    });
  });
  return cudaGetLastError();
}

template <>
cudaError_t launch(const ReshapeAndCacheParams& p, const Context& context) {
  if (!p.codec().is_float()) {
    with_dtype(p.dtype,
               [&]<Float kDtype>() { launch_packed<Quantise<kDtype, 8>, Quantise<kDtype, 1>, uint8_t>(p, context); });
  } else if (num_bytes(p.dtype) == 4) {
    launch_packed<Copy<16>, Copy<4>, uint32_t>(p, context);
  } else {
    launch_packed<Copy<16>, Copy<2>, uint16_t>(p, context);
  }
  return cudaGetLastError();
}

}  // namespace multikv::gpu
