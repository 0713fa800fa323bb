// What the kernels of paged_attention take: the params of the op, with the caches as one kind of source.
#pragma once

#include <algorithm>

#include "cuda/launch.h"
#include "params/attention_params.h"

namespace multikv::gpu {

// Keys are cut into granules at the positions 0, kGranule, 2 * kGranule and so on. Every granule is attended over from
// scratch, and the results of granules are joined in ascending order. So results do not depend on which thread block
// attends over which granule. Inside a granule, kStep keys are attended over at a time.
inline constexpr int kGranule = 256, kStep = 64;

// A cache in any layout. In packed layouts, the slots of a block or the elements of a head are divided into groups. The
// element `element` of head `head` in the slot {block, offset} has the address:
//
//   address = data + block * stride_block_bytes + head * stride_head_bytes
//             + offset  / slots_per_group    * stride_slot_group_bytes    + offset  % slots_per_group    *
//             stride_slot_bytes
//             + element / elements_per_group * stride_element_group_bytes + element % elements_per_group *
//             stride_element_bytes
struct CacheSource {
  const char* data;
  const float* scale;  // one, or one for each head; nullptr: all are 1
  int64_t scale_stride_head;
  int64_t stride_block_bytes, stride_head_bytes;
  Divisor slots_per_group;
  int64_t stride_slot_group_bytes, stride_slot_bytes;
  Divisor elements_per_group;
  int64_t stride_element_group_bytes, stride_element_bytes;

  // Whether heads consist of chunks of 16 aligned bytes that hold neighbouring elements, and offsets fit into 32 bits
  // as multiples of 16. Then:
  //
  //   address of a chunk = data + (block * block_vectors + head * head_vectors + offset * slot_vectors) * 16
  //                        + chunk * stride_chunk_bytes
  bool has_vectors;
  uint32_t block_vectors, head_vectors, slot_vectors;
  int64_t stride_chunk_bytes;
};

// The argument of the kernels.
struct AttentionProblem {
  TokenHeads query, out;
  HeadTokenFloats lse;
  AttentionSequences sequences;
  AttentionOptions options;
  AttentionWorkspace workspace;
  CacheSource key, value;
  Blocks blocks;
  int64_t num_query_heads, num_kv_heads;
  Divisor group;             // query heads of a kv head
  int key_size, value_size;  // elements
  Element element;           // of the caches
  Float dtype;               // of query and out
  bool has_query_vectors;    // queries of 16-bit elements can be read in vectors of four elements
  bool has_out_vectors;      // `out` of 16-bit elements can be written in vectors of four elements
  // The kernel serves sequences with min_rows to max_rows rows. A sequence has a row for each query token and each of
  // the query heads of a kv head.
  int64_t min_rows, max_rows;
  int tile_rows;                 // rows of a tile (schedule.cuh)
  int64_t slot_rows, num_slots;  // of the workspace (partials.cuh)
  int tiles_per_head;            // the most tiles of a kv head of a sequence
  int tile_blocks;               // thread blocks of a tile (TilePart)
};
static_assert(LaunchParams<AttentionProblem>);

inline CacheSource source_of(const CacheView& cache) {
  return {.data = cache.data,
          .scale = cache.scale,
          .scale_stride_head = cache.scale_stride_head,
          .stride_block_bytes = cache.stride_block_bytes,
          .stride_head_bytes = 0,
          .slots_per_group = Divisor::of(1),
          .stride_slot_group_bytes = 0,
          .stride_slot_bytes = 0,
          .elements_per_group = Divisor::of(1),
          .stride_element_group_bytes = 0,
          .stride_element_bytes = 0,
          .has_vectors = false,
          .block_vectors = 0,
          .head_vectors = 0,
          .slot_vectors = 0,
          .stride_chunk_bytes = 0};
}

// Sets the fields that describe vectors. `bits` (alignment_bits) decide whether the cache has vectors. The caller
// guarantees that slots_per_group is 1, and that the elements of a chunk are contiguous.
inline void enable_vectors(CacheSource& source, AlignmentBits bits, int64_t stride_chunk_bytes) {
  source.has_vectors = bits.widest(16) == 16;
  source.block_vectors = static_cast<uint32_t>(source.stride_block_bytes / 16);
  source.head_vectors = static_cast<uint32_t>(source.stride_head_bytes / 16);
  source.slot_vectors = static_cast<uint32_t>(source.stride_slot_group_bytes / 16);
  source.stride_chunk_bytes = stride_chunk_bytes;
}

inline CacheSource source_of(const FlashCache& cache, int64_t head_size) {
  const int64_t element_bytes = cache.codec.num_bytes(1);
  CacheSource source = source_of(static_cast<const CacheView&>(cache));
  source.stride_head_bytes = cache.stride_head_bytes;
  source.stride_slot_group_bytes = cache.stride_slot_bytes;
  source.stride_element_group_bytes = element_bytes;
  enable_vectors(source, cache.alignment_bits() | head_size * element_bytes, 16);
  return source;
}

inline CacheSource source_of(const PackedKeyCache& cache, int64_t head_size) {
  const int64_t element_bytes = cache.codec.num_bytes(1);
  CacheSource source = source_of(static_cast<const CacheView&>(cache));
  source.stride_head_bytes = cache.stride_head_bytes;
  source.stride_slot_group_bytes = cache.stride_row_bytes;
  source.elements_per_group = cache.vector_size;
  source.stride_element_group_bytes = cache.stride_vector_bytes;
  source.stride_element_bytes = element_bytes;
  const int64_t vector_bytes = cache.vector_size.signed_value() * element_bytes;
  if (vector_bytes == 16) {
    enable_vectors(source, cache.alignment_bits() | head_size * element_bytes, cache.stride_vector_bytes);
  }
  return source;
}

inline CacheSource source_of(const PackedValueCache& cache) {
  CacheSource source = source_of(static_cast<const CacheView&>(cache));
  source.stride_head_bytes = cache.stride_head_bytes;
  source.slots_per_group = cache.vector_size;
  source.stride_slot_group_bytes = cache.stride_vector_bytes;
  source.stride_slot_bytes = cache.codec.num_bytes(1);
  source.stride_element_group_bytes = cache.stride_row_bytes;
  return source;
}

// Whether every entry starts less than 2^32 times 16 bytes behind the start of the cache.
inline bool has_short_offsets(const CacheSource& cache, const Blocks& blocks, int64_t num_heads) {
  const int64_t block_bytes =
      blocks.block_size.signed_value() * (cache.stride_slot_group_bytes + cache.stride_slot_bytes);
  return blocks.num_blocks * cache.stride_block_bytes + num_heads * cache.stride_head_bytes + block_bytes < int64_t{16}
                                                                                                                << 32;
}

inline AttentionProblem problem_of(const PagedAttentionParams& p) {
  AttentionProblem problem{};
  problem.query = p.query;
  problem.out = p.out;
  problem.lse = p.lse;
  problem.sequences = p.sequences;
  problem.options = p.options;
  problem.workspace = p.workspace;
  problem.key = p.is_packed ? source_of(p.packed_key, p.head_size) : source_of(p.key, p.head_size);
  problem.value = p.is_packed ? source_of(p.packed_value) : source_of(p.value, p.value_size);
  if (p.codec().is_float()) problem.key.scale = problem.value.scale = nullptr;
  problem.blocks = p.blocks();
  if (problem.blocks.num_blocks == 0) problem.sequences.max_seq_len = 0;
  // Positions of keys are below 2^31, so that a larger block size makes no difference.
  problem.blocks.block_size = Divisor::of(std::min<int64_t>(problem.blocks.block_size.signed_value(), INT32_MAX));
  for (CacheSource* cache : {&problem.key, &problem.value}) {
    cache->has_vectors = cache->has_vectors && has_short_offsets(*cache, problem.blocks, p.num_kv_heads);
  }
  problem.num_query_heads = p.num_query_heads;
  problem.num_kv_heads = p.num_kv_heads;
  problem.group = Divisor::of(p.heads_per_kv_head());
  problem.key_size = static_cast<int>(p.head_size);
  problem.value_size = static_cast<int>(p.value_size);
  problem.element = p.codec().element;
  problem.dtype = p.dtype;
  problem.has_query_vectors = p.head_size % 4 == 0 && p.query.alignment_bits().widest(8) == 8;
  problem.has_out_vectors = p.value_size % 4 == 0 && p.out.alignment_bits().widest(8) == 8;
  problem.max_rows = INT64_MAX;
  return problem;
}

}  // namespace multikv::gpu
