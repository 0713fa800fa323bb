// What the front end hands to a backend for the ops of family mla.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

struct ConcatAndCacheMlaParams {
  Slots slots;
  TokenRows kv_c;  // [tokens, latent_size]
  TokenRows k_pe;  // [tokens, rope_size]
  int64_t latent_size, rope_size;
  EntryCache cache;  // entries of latent_size + rope_size elements, or fp8_ds_mla entries
  Float dtype;

  constexpr const Codec& codec() const { return cache.codec; }
  constexpr const Blocks& blocks() const { return cache.blocks; }
  constexpr bool is_ds_mla() const { return cache.codec.scale_place == ScalePlace::kEntry; }
  constexpr Work work() const {
    const int64_t elements = latent_size + rope_size;
    return {slots.num_tokens, elements * num_bytes(dtype),
            is_ds_mla() ? DsMlaEntry::kBytes : codec().num_bytes(elements)};
  }
};
static_assert(LaunchParams<ConcatAndCacheMlaParams>);

// ConcatAndCacheMlaParams for many layers.
struct ConcatAndCacheMlaGroupedParams {
  ConcatAndCacheMlaParams first;  // of layer 0, without cache.data and cache.scale; slots.mapping is [layers, tokens]
  void* const* kv_cache_ptrs;     // [layers]
  const float* kv_scales;         // [layers], or nullptr
  int64_t num_layers, kv_c_stride_layer_bytes, k_pe_stride_layer_bytes;

  constexpr ConcatAndCacheMlaParams layer(int64_t i) const {
    ConcatAndCacheMlaParams p = first;
    p.kv_c.data += i * kv_c_stride_layer_bytes;
    p.k_pe.data += i * k_pe_stride_layer_bytes;
    p.cache.data = static_cast<char*>(kv_cache_ptrs[i]);
    p.cache.scale = kv_scales == nullptr ? nullptr : kv_scales + i;
    p.slots.mapping = p.slots.mapping.row(i);
    return p;
  }
  constexpr Work work() const {
    Work work = first.work();
    work.num_items *= num_layers;
    return work;
  }
};
static_assert(LaunchParams<ConcatAndCacheMlaGroupedParams>);

// The elements may have any dtype: they are copied as bytes.
struct ConcatMlaQParams {
  TokenHeads ql_nope;  // [tokens, heads, nope]
  TokenHeads q_pe;     // [tokens, heads, rope]
  TokenHeads q_out;    // [tokens, heads, nope + rope]; written
  int64_t num_tokens, num_heads;

  // An item is a head of a token.
  constexpr Work work() const { return {num_tokens * num_heads, q_out.head_bytes, q_out.head_bytes}; }
};
static_assert(LaunchParams<ConcatMlaQParams>);

}  // namespace multikv
