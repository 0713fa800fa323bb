// Entries of MLA's cache: a latent vector and a rotary key side by side, or fp8_ds_mla.
#pragma once

#include "moves.cuh"
#include "tile.cuh"

namespace multikv::gpu {

// The vectors thread, thread + num_threads, ... of the entries of tokens first, first + step, ...; those of kv_c first.
template <class Move, int kUnroll, class IndexOf>
__device__ inline void write_entries(const ConcatAndCacheMlaParams& p, IndexOf index_of, int64_t rope_size, int64_t first,
                                     int64_t step, int64_t thread, int64_t num_threads) {
  const int64_t source_bytes = num_bytes(p.dtype), cache_bytes = num_bytes(p.format, p.dtype);
  const int64_t latent_vectors = p.latent_size * source_bytes / Move::kSourceBytes;
  const int64_t vectors = latent_vectors + rope_size * source_bytes / Move::kSourceBytes;
  for (int64_t vector = thread; vector < vectors; vector += num_threads) {
    const bool is_latent = vector < latent_vectors;
    const Lane lane = {
        .source = is_latent ? static_cast<const char*>(p.kv_c) + vector * Move::kSourceBytes
                            : static_cast<const char*>(p.k_pe) + (vector - latent_vectors) * Move::kSourceBytes,
        .cache = static_cast<char*>(p.kv_cache) + vector * Move::kCacheBytes,
        .source_stride_token = (is_latent ? p.kv_c_stride_token : p.k_pe_stride_token) * source_bytes,
        .cache_stride_block = p.kv_cache_stride_block * cache_bytes,
        .cache_stride_slot = p.kv_cache_stride_slot * cache_bytes,
    };
    write_tokens<Move, kUnroll>(p.slots, index_of, first, step, lane, p.scale, p.format);
  }
}

// The codes and scales of fp8_ds_mla entries, by a group of 32 lanes, all of which must call: 8 lanes for each tile of the
// tokens first + i * step. entry_of(i): that token's entry, or nullptr.
template <Float kDtype, bool kWide, int kTokens, class EntryOf>
__device__ inline void write_ds_mla_latent(const ConcatAndCacheMlaParams& p, int64_t first, int64_t step, int lane,
                                           EntryOf entry_of) {
  constexpr int kElements = kWide ? 16 : 1, kLanes = 8;
  const int tile = lane / kLanes;
  const char* sources[kTokens];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    const int64_t token = first + i * step, at = token * p.kv_c_stride_token + tile * DsMlaEntry::kTileSize;
    sources[i] = token < p.slots.num_tokens ? static_cast<const char*>(p.kv_c) + at * num_bytes(kDtype) : nullptr;
  }
  const auto place_of = [&](int i) -> TilePlace {
    char* entry = entry_of(i);
    if (entry == nullptr) return {nullptr, nullptr};
    return {entry + tile * DsMlaEntry::kTileSize, entry + DsMlaEntry::kScalesAt + tile * 4};
  };
  quantise_tiles<kDtype, kElements>(
      sources, place_of, DsMlaEntry::kTileSize, lane % kLanes, kLanes, p.format, true,
      [&](float amax) { return ds_mla_tile_scale(amax, p.format); }, [](float scale) { return __float_as_uint(scale); });
}

inline int source_alignment(const ConcatAndCacheMlaParams& p) {
  const int64_t bytes = num_bytes(p.dtype);
  return common_alignment(16, {address(p.kv_c), p.latent_size * bytes, p.kv_c_stride_token * bytes,
                               p.rope_size == 0 ? 0 : address(p.k_pe) | p.rope_size * bytes | p.k_pe_stride_token * bytes});
}

inline int cache_alignment(const ConcatAndCacheMlaParams& p) {
  const int64_t bytes = p.is_ds_mla ? 1 : num_bytes(p.format, p.dtype);
  return common_alignment(16, {address(p.kv_cache), p.latent_size * bytes, p.rope_size * bytes,
                               p.kv_cache_stride_block * bytes, p.kv_cache_stride_slot * bytes});
}

}  // namespace multikv::gpu
