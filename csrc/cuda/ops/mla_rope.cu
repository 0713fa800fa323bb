#include "cuda/cache/mla_entry.cuh"
#include "cuda/core/rotate_pairs.cuh"
#include "params/mla_rope_params.h"

namespace multikv::gpu {
namespace {

constexpr int kQueryHeads = 2;  // the number of query heads that a thread rotates

// The number of threads that write the latent part of one token's entry, and the number of tokens that a thread block
// writes at a time.
constexpr int kLatentThreads = 64, kLatentStep = kThreads / kLatentThreads;

// The thread blocks that rotate queries, or those that rotate keys. A row is kQueryHeads query heads of a token, or the
// token's key. Each row has `row_threads` threads, which loop over the pairs. In each step, a thread rotates kPairs
// pairs of each head of the row, or of the key: the elements of two vectors. A thread block has `rows` rows of each of
// `tokens` tokens:
//
//   threadIdx.x = (token * rows + row) * row_threads + thread of the row
//   block       = chunk of tokens * row_blocks + row block
struct RotatingBlocks {
  SmallDivisor row_threads, rows;
  int tokens;
  Divisor row_blocks;
  int64_t num_blocks;

  static RotatingBlocks of(int64_t vectors, int64_t rows, int64_t num_tokens) {
    if (vectors == 0 || rows == 0) return {};
    const BlockShape shape = block_shape(vectors, rows, num_tokens, kThreads);
    const auto [x, y, z] = shape.threads;
    return {SmallDivisor::of(x), SmallDivisor::of(y), static_cast<int>(z), Divisor::of(shape.row_blocks),
            ceil_div<int64_t>(num_tokens, z) * shape.row_blocks};
  }
};

// The thread blocks of the grid, which are of three kinds. Those with the longest chain of dependent instructions come
// first.
//
//   blockIdx.x  | write latent vectors to the cache | rotate keys, and write them to the cache | rotate queries |
struct RopeShape {
  int64_t num_latent_blocks;
  int latent_unroll;  // the number of tokens whose latent vectors a thread has in flight: 1 or kLatentUnroll
  RotatingBlocks keys, queries;
};
constexpr int kLatentUnroll = 4;

// Writes a vector of the rotated key to the token's entry. Element 0 of the vector is element `at` of the key.
template <Float kDtype, int kElements>
__device__ inline void write_key(const ConcatAndCacheMlaParams& p, char* entry, int64_t at, float scale,
                                 const FloatPack<kDtype, kElements>& value) {
  if (p.is_ds_mla()) {
    char* to = entry + DsMlaEntry::kRopeAt + at * num_bytes(kDtype);
    if constexpr (kElements > 1) {
      value.template write<true>(to);
    } else {  // byte by byte, because an entry may begin at any byte
      to[0] = static_cast<char>(value.words[0]);
      to[1] = static_cast<char>(value.words[0] >> 8);
    }
  } else if (p.codec().is_float()) {
    value.template write<true>(entry + (p.latent_size + at) * num_bytes(kDtype));
  } else {
    const Quantise<kDtype, kElements> quantise(scale, p.codec().element);
    quantise(value).template write<true>(entry + p.latent_size + at);
  }
}

// The kNumHeads heads of a token that a thread rotates: first_head + k * head_step for k < kNumHeads, as far as they
// are below num_heads. The thread rotates kPairs pairs of each head at a time: the elements of two Vectors.
template <Float kDtype, int kPairs, int kNumHeads>
struct RotatedHeads {
  using Vector = FloatPack<kDtype, kPairs>;
  char* data;
  int64_t stride_head_bytes, first_head, head_step, num_heads;

  // Calls with(k, address of the head) for each head.
  template <class With>
  __device__ __forceinline__ void for_each(With with) const {
#pragma unroll
    for (int k = 0; k < kNumHeads; ++k) {
      const int64_t head = first_head + k * head_step;
      if (head < num_heads) with(k, data + head * stride_head_bytes);
    }
  }
};

// Rotates one thread's pairs: the same pairs in each of kQueryHeads query heads of a token, or pairs of the token's
// key. The rotated key is also written to the cache.
template <Float kDtype, Float kTable, int kPairs, bool kIsKey>
__device__ __forceinline__ void rotate_heads(const ConcatAndCacheMlaRopeFusedParams& p, const RotatingBlocks& shape,
                                             int64_t block) {
  constexpr int64_t kBytes = num_bytes(kDtype);
  constexpr int kNumHeads = kIsKey ? 1 : kQueryHeads;
  using Heads = RotatedHeads<kDtype, kPairs, kNumHeads>;
  const ConcatAndCacheMlaParams& write = p.write;
  const int64_t row_blocks = shape.row_blocks.signed_value();
  const auto chunk = static_cast<int64_t>(quotient_of(block, shape.row_blocks)), row_block = block - chunk * row_blocks;
  const int thread = static_cast<int>(threadIdx.x);
  const int block_row = shape.row_threads.divide(thread);  // counts the rows of all tokens of the thread block
  const int block_token = shape.rows.divide(block_row);    // counts the tokens of the thread block
  const int64_t token = chunk * shape.tokens + block_token;
  if (block_token >= shape.tokens || token >= write.slots.num_tokens) return;

  const int64_t half = write.rope_size / 2;
  const PrefetchedIndex position_index(p.positions, token), slot_index(write.slots.mapping, token);
  const float scale = kIsKey ? Quantise<kDtype, kPairs>::scale(write.cache.scale) : 1.0f;
  const Heads heads = {
      .data = kIsKey ? write.k_pe.row(token) : p.q_pe.head(token, 0),
      .stride_head_bytes = p.q_pe.stride_head_bytes,
      .first_head = row_block * shape.rows.value + (block_row - block_token * shape.rows.value),
      .head_step = row_blocks * shape.rows.value,
      .num_heads = kIsKey ? 1 : p.num_heads,
  };
  for (int64_t i = (thread - block_row * shape.row_threads.value) * kPairs; i < half;
       i += shape.row_threads.value * kPairs) {
    const int64_t first_element = p.is_neox ? i : 2 * i, second_element = p.is_neox ? half + i : 2 * i + kPairs;
    typename Heads::Vector first[kNumHeads], second[kNumHeads];
    heads.for_each([&](int k, const char* head) {
      first[k] = Heads::Vector::template read<true>(head + first_element * kBytes);
      second[k] = Heads::Vector::template read<true>(head + second_element * kBytes);
    });
    const int64_t position = position_index.value();
    if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(p.num_positions)) return;
    const auto angles = AngleVectors<kTable, kPairs>::read(p.cos_sin_cache.row(position), half, i);
    heads.for_each([&](int k, char* head) {
      rotate<kDtype, kTable, kPairs>(p.is_neox, first[k], second[k], angles);
      first[k].template write<true>(head + first_element * kBytes);
      second[k].template write<true>(head + second_element * kBytes);
    });
    if constexpr (kIsKey) {
      char* entry = entry_at(write.cache, slot_index.value());
      if (entry == nullptr) continue;
      write_key<kDtype, kPairs>(write, entry, first_element, scale, first[0]);
      write_key<kDtype, kPairs>(write, entry, second_element, scale, second[0]);
    }
  }
}

// The prefetched index of a token's slot. value() is -1 if the token's position is not in the table.
struct SlotIfPosition {
  PrefetchedIndex position, slot;
  int64_t num_positions;

  __device__ int64_t value() const {
    return static_cast<uint64_t>(position.value()) < static_cast<uint64_t>(num_positions) ? slot.value() : -1;
  }
};

// Writes the latent vectors of the tokens of a thread block.
template <Float kDtype, bool kWide, int kUnroll>
__device__ inline void write_latent(const ConcatAndCacheMlaRopeFusedParams& p, int64_t block) {
  constexpr int kElementBytes = num_bytes(kDtype);
  const ConcatAndCacheMlaParams& write = p.write;
  const auto index_of = [&](int64_t token) -> SlotIfPosition {
    return {{p.positions, token}, {write.slots.mapping, token}, p.num_positions};
  };
  constexpr int64_t kTokens = kUnroll * kLatentStep;
  const int64_t first = block * kTokens;
  if (write.is_ds_mla()) {
    if constexpr (kDtype != Float::kFloat32) {
      constexpr int64_t kWarps = kThreads / 32;
      for (int64_t token = first + threadIdx.x / 32; token < first + kTokens; token += kWarps) {
        const bool is_token = token < write.slots.num_tokens;
        const SlotIfPosition slot = index_of(is_token ? token : 0);
        write_ds_mla_latent<kDtype, kWide, true>(
            write, token, threadIdx.x % 32, [&] { return is_token ? entry_at(write.cache, slot.value()) : nullptr; });
      }
    }
    return;
  }
  const ChunkPart part = {
      .first_token = first,
      .token = static_cast<int>(threadIdx.x / kLatentThreads),
      .token_step = kLatentStep,
      .vector = threadIdx.x % kLatentThreads,
      .vector_step = kLatentThreads,
  };
  if (write.codec().is_float()) {
    write_entries<Copy<kWide ? 16 : kElementBytes>, kUnroll, true>(write, 0, part, index_of);
  } else {
    write_entries<Quantise<kDtype, kWide ? 8 : 1>, kUnroll, true>(write, 0, part, index_of);
  }
}

template <Float kDtype, Float kTable, bool kWide>
__global__ void __launch_bounds__(kThreads)
    concat_and_cache_mla_rope_fused_kernel(const RopeShape shape,
                                           const MULTIKV_GRID_CONSTANT ConcatAndCacheMlaRopeFusedParams p) {
  constexpr int kPairs = kWide ? 16 / num_bytes(kDtype) : 1;
  int64_t block = blockIdx.x;
  if (block < shape.num_latent_blocks) {
    if (shape.latent_unroll == 1) write_latent<kDtype, kWide, 1>(p, block);
    else write_latent<kDtype, kWide, kLatentUnroll>(p, block);
    return;
  }
  block -= shape.num_latent_blocks;
  if (block < shape.keys.num_blocks) rotate_heads<kDtype, kTable, kPairs, true>(p, shape.keys, block);
  else rotate_heads<kDtype, kTable, kPairs, false>(p, shape.queries, block - shape.keys.num_blocks);
}

template <Float kDtype, Float kTable, bool kWide>
void launch_width(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  constexpr int kPairs = kWide ? 16 / num_bytes(kDtype) : 1;
  const int64_t num_tokens = p.write.slots.num_tokens, vectors = p.write.rope_size / 2 / kPairs;
  // With few tokens, all thread blocks are resident at once, and one token for each thread gives the shortest chain.
  const int unroll = num_tokens <= 4 * context.num_multiprocessors ? 1 : kLatentUnroll;
  const RopeShape shape = {ceil_div<int64_t>(num_tokens, unroll * kLatentStep), unroll,
                           RotatingBlocks::of(vectors, 1, num_tokens),
                           RotatingBlocks::of(vectors, ceil_div<int64_t>(p.num_heads, kQueryHeads), num_tokens)};
  const auto blocks = static_cast<unsigned>(shape.num_latent_blocks + shape.keys.num_blocks + shape.queries.num_blocks);
  concat_and_cache_mla_rope_fused_kernel<kDtype, kTable, kWide><<<blocks, kThreads, 0, context.stream>>>(shape, p);
}

template <Float kDtype, Float kTable>
void launch_dtypes(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  const AlignmentBits bits = source_alignment_bits(p.write) | cache_alignment_bits(p.write) |
                             p.write.rope_size / 2 * num_bytes(kDtype) | p.q_pe.alignment_bits() |
                             p.cos_sin_cache.alignment_bits();
  if (bits.widest(16) == 16) launch_width<kDtype, kTable, true>(p, context);
  else launch_width<kDtype, kTable, false>(p, context);
}

}  // namespace

template <>
cudaError_t launch(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  with_dtype(p.write.dtype, [&]<Float kDtype>() {
    if (p.table_dtype == Float::kFloat32) launch_dtypes<kDtype, Float::kFloat32>(p, context);
    else launch_dtypes<kDtype, kDtype>(p, context);
  });
  return cudaGetLastError();
}

}  // namespace multikv::gpu
