// What the front end hands to a backend for the ops of family norm_rope.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// The root mean square norm of a row of n elements, in which every operation rounds to float32:
//
//   r = 1 / sqrt(sum of squares / n + eps),  y = (x * r) * (weight + weight_bias)
//
// The squares are added in a tree: neighbours are added, then neighbours of these sums, and so on. Zeros fill up the
// row to a power of two.
struct RmsNorm {
  float eps, weight_bias;
};

// The weight of a norm, [n]. If data is nullptr, the normed elements are not multiplied.
struct NormWeight {
  const char* data;
  Float dtype;

  constexpr bool is_given() const { return data != nullptr; }
};

struct RmsNormParams {
  const char* input;
  char* out;
  StridedRows rows;  // in bytes; a row is the last dimension of input and out
  int64_t row_elements;
  NormWeight weight;
  RmsNorm norm;
  Float dtype;

  constexpr Work work() const { return {rows.num_rows, rows.row_size, rows.row_size}; }
};
static_assert(LaunchParams<RmsNormParams>);

// The row of positions [3, tokens] from which a pair of multimodal rotary embedding takes its position.
struct MropeSection {
  bool is_given, is_interleaved;
  int64_t t, h, w;  // the number of pairs that use row 0, 1 and 2

  constexpr int row_of(int pair) const {
    if (is_interleaved) return pair % 3 == 1 && pair < 3 * h ? 1 : pair % 3 == 2 && pair < 3 * w ? 2 : 0;
    return pair < t ? 0 : pair < t + h ? 1 : 2;
  }
};

// Rotary embedding of the elements offset .. offset + size - 1 of a head.
struct Rope {
  bool is_on;
  bool is_neox;       // true: elements i and i + size / 2 are a pair; false: elements 2i and 2i + 1 are
  Float table_dtype;  // of cos_sin_cache
  Indices positions;  // [tokens], or [3, tokens] if a section is given
  MropeSection section;
  TokenRows cos_sin_cache;  // [num_positions, size]: a row has size / 2 cosines, then as many sines
  int64_t num_positions;
  int64_t offset, size;

  constexpr int64_t num_pairs() const { return size / 2; }
};

struct RotaryEmbeddingParams {
  Rope rope;
  TokenHeads query, key;  // rotated in place; key.data is nullptr if there is no key
  int64_t num_tokens, num_query_heads, num_key_heads, head_size;
  Float dtype;

  constexpr Work work() const {
    const int64_t bytes = (num_query_heads + num_key_heads) * rope.size * num_bytes(dtype);
    return {num_tokens, bytes, bytes};
  }
};
static_assert(LaunchParams<RotaryEmbeddingParams>);

enum class NormOrder : uint8_t {
  kNone,       // there is no norm
  kHead,       // each head is normed, and then rotated
  kAfterRope,  // each head is rotated, and then normed
  kAllHeads,   // all heads of a token are normed as one row, and then each is rotated
};

// The queries of all tokens, or the keys.
struct NormRopeHeads {
  TokenHeads source;
  TokenHeads out;  // written unless out.data is nullptr; for queries it may be the source
  int64_t num_heads;
  NormWeight weight;
};

// A cache of keys or of values. A cache [blocks, block_size, heads, head_size] is a packed cache with one vector in a
// head: vector_size is head_size, stride_vector_bytes is 0, and stride_row_bytes is the distance between slots.
struct HeadCache : PackedCache {
  bool packs_slots;  // whether the vectors of the cache are elements of neighbouring slots: values in a packed cache

  // Returns the address of element `dim` of a head of a slot. divide(x, divisor) is the backend's division.
  template <class Divide>
  constexpr char* element(BlockOffset at, int64_t head, int64_t dim, int64_t element_bytes, Divide divide) const {
    return block(at.block) + (packs_slots ? offset_bytes(head, dim, at.offset, element_bytes, divide)
                                          : offset_bytes(head, at.offset, dim, element_bytes, divide));
  }
};

struct QkNormRopeCacheParams {
  Slots slots;
  Rope rope;
  NormRopeHeads query, key;
  TokenHeads value;
  HeadCache key_cache, value_cache;
  bool is_packed;         // whether the caches have the packed layout
  Element query_element;  // of query.out: that of `dtype`, or an fp8 element
  NormOrder order;
  Float dtype;
  const float* query_scale;  // for fp8 queries
  int64_t head_size;
  RmsNorm norm;

  constexpr const Codec& codec() const { return key_cache.codec; }
  constexpr const Blocks& blocks() const { return key_cache.blocks; }
  constexpr bool quantises_queries() const { return !is_float(query_element); }
  constexpr Work work() const {
    const int64_t q = query.num_heads * head_size, kv = 2 * key.num_heads * head_size;
    const int64_t keys = key.out.data == nullptr ? 0 : kv / 2 * num_bytes(dtype);
    return {slots.num_tokens, (q + kv) * num_bytes(dtype), num_bytes(query_element, q) + codec().num_bytes(kv) + keys};
  }
};
static_assert(LaunchParams<QkNormRopeCacheParams>);

}  // namespace multikv
