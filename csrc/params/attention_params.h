// What the front end hands to a backend for the ops of family attention.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// A float32 tensor [heads, tokens] with any strides. `data` is nullptr if the argument was not given.
struct HeadTokenFloats {
  char* data;  // read, except where the params say that it is written
  int64_t stride_head_bytes, stride_token_bytes;

  constexpr bool is_given() const { return data != nullptr; }
  float* at(int64_t head, int64_t token) const {
    return reinterpret_cast<float*>(data + head * stride_head_bytes + token * stride_token_bytes);
  }
};

// The query tokens of each sequence, and the cached keys that they attend over.
//
// Sequence s has seq_lens[s] keys and owns the query rows [cu_query_lens[s], cu_query_lens[s + 1]). Without
// cu_query_lens it owns row s alone. Row i of a sequence with q_len rows stands at position seq_lens[s] - q_len + i.
struct AttentionSequences {
  Indices block_table;    // [num_sequences, blocks_per_sequence]
  Indices seq_lens;       // [num_sequences]
  Indices cu_query_lens;  // [num_sequences + 1]; not given: one query row for each sequence
  int64_t num_sequences;
  int64_t blocks_per_sequence;
  int64_t num_rows;                    // rows that query, out, lse and query_mask all have
  int64_t max_query_len, max_seq_len;  // at least 0; an argument of -1 has been replaced
};

// Which keys are visible, and how scores are computed.
struct AttentionOptions {
  float scale;
  float softcap;        // 0: none
  int64_t window_left;  // -1: none
  bool is_causal;
  Float sinks_dtype;
  const float* alibi_slopes;  // [query heads], or nullptr
  const void* sinks;          // [query heads], or nullptr
  const int64_t* query_mask;  // [num_rows], or nullptr
};

// Memory that a kernel may use. Its size never changes results. The start is a multiple of kAlignment bytes.
struct AttentionWorkspace {
  static constexpr int64_t kAlignment = 16;
  char* data;
  int64_t num_bytes;
};

// paged_attention, paged_attention_v1 and paged_attention_v2.
struct PagedAttentionParams {
  TokenHeads query;     // [num_rows, query heads, head_size]
  TokenHeads out;       // [num_rows, query heads, value_size]; written
  HeadTokenFloats lse;  // [query heads, num_rows]; written if given
  AttentionSequences sequences;
  AttentionOptions options;
  AttentionWorkspace workspace;
  int64_t num_query_heads, num_kv_heads;
  int64_t head_size, value_size;
  Float dtype;     // of query and out
  bool is_packed;  // whether the caches are packed_key and packed_value, or key and value; the other two are not set
  FlashCache key, value;
  PackedKeyCache packed_key;
  PackedValueCache packed_value;

  constexpr int64_t heads_per_kv_head() const { return num_query_heads / num_kv_heads; }
  constexpr const CacheView& key_view() const { return is_packed ? static_cast<const CacheView&>(packed_key) : key; }
  constexpr const CacheView& value_view() const {
    return is_packed ? static_cast<const CacheView&>(packed_value) : value;
  }
  constexpr const Codec& codec() const { return key_view().codec; }
  constexpr const Blocks& blocks() const { return key_view().blocks; }
};
static_assert(LaunchParams<PagedAttentionParams>);

// One of the two states that merge_attn_states merges.
struct AttentionState {
  TokenHeads output;
  HeadTokenFloats lse;
};

struct MergeAttnStatesParams {
  TokenHeads output;           // written
  HeadTokenFloats output_lse;  // written if given
  AttentionState prefix, suffix;
  int64_t num_tokens, num_heads, head_size;
  int64_t num_merged_tokens;  // the tokens from here on are copied from the suffix
  Float dtype;                // of the states
  Codec codec;                // of the output: dtype, or fp8
  const float* output_scale;  // nullptr unless the output is fp8

  // An item is a head of a token.
  constexpr Work work() const {
    return {num_tokens * num_heads, 2 * head_size * num_bytes(dtype), codec.num_bytes(head_size)};
  }
};
static_assert(LaunchParams<MergeAttnStatesParams>);

}  // namespace multikv
