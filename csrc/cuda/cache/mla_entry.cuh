// Entries of MLA's cache: a latent vector and a rotary key side by side, or fp8_ds_mla.
#pragma once

#include "cuda/cache/write_tokens.cuh"
#include "cuda/core/quantised_tile.cuh"

namespace multikv::gpu {

// The entries of tokens first + row, first + row + rows, ...: of each the vectors thread, thread + num_threads, ...;
// those of kv_c first.
template <class Move, int kUnroll, bool kOnce, class IndexOf>
__device__ inline void write_entries(const ConcatAndCacheMlaParams& p, IndexOf index_of, int64_t rope_size,
                                     int64_t first, int row, int rows, int thread, int num_threads) {
  const int64_t source_bytes = num_bytes(p.dtype), cache_bytes = num_bytes(p.format, p.dtype);
  const int64_t latent_vectors = p.latent_size * source_bytes / Move::kSourceBytes;
  const int64_t rope_vectors = rope_size * source_bytes / Move::kSourceBytes;
  const auto lane_of = [&](int64_t vector) -> Lane {
    const bool is_latent = vector < latent_vectors;
    return {is_latent ? static_cast<const char*>(p.kv_c) + vector * Move::kSourceBytes
                      : static_cast<const char*>(p.k_pe) + (vector - latent_vectors) * Move::kSourceBytes,
            static_cast<char*>(p.kv_cache) + vector * Move::kCacheBytes,
            (is_latent ? p.kv_c_stride_token : p.k_pe_stride_token) * source_bytes};
  };
  const TilePart part = {first, row, rows, thread, num_threads, latent_vectors + rope_vectors};
  const SlotStrides strides = {p.kv_cache_stride_block * cache_bytes, p.kv_cache_stride_slot * cache_bytes};
  write_tokens<Move, kUnroll, kOnce>(p.slots, index_of, part, strides, lane_of, p.scale, p.format);
}

// The entry in a slot; nullptr if it is none.
__device__ inline char* entry_at(const ConcatAndCacheMlaParams& p, int64_t slot) {
  const int64_t bytes = p.is_ds_mla ? 1 : num_bytes(p.format, p.dtype);
  const int64_t offset = slot_offset(p.slots, slot, p.kv_cache_stride_block * bytes, p.kv_cache_stride_slot * bytes);
  return offset < 0 ? nullptr : static_cast<char*>(p.kv_cache) + offset;
}

// The codes and scales of a token's fp8_ds_mla entry, by a group of 32 lanes, all of which must call: 8 lanes for each
// tile. entry(): where it is, or nullptr; asked for when all loads are on their way.
template <Float kDtype, bool kWide, bool kOnce, class Entry>
__device__ inline void write_ds_mla_latent(const ConcatAndCacheMlaParams& p, int64_t token, int lane, Entry entry) {
  constexpr int kElements = kWide ? 8 : 1, kLanes = 8;
  const int tile = lane / kLanes;
  const char* source = nullptr;
  if (token < p.slots.num_tokens) {
    source = static_cast<const char*>(p.kv_c) +
             (token * p.kv_c_stride_token + tile * DsMlaEntry::kTileSize) * num_bytes(kDtype);
  }
  const auto place = [&]() -> TilePlace {
    char* to = entry();
    if (to == nullptr) return {nullptr, nullptr};
    return {to + tile * DsMlaEntry::kTileSize, to + DsMlaEntry::kScalesAt + tile * 4};
  };
  quantise_tile<kDtype, kElements, kOnce>(
      source, place, DsMlaEntry::kTileSize, lane % kLanes, kLanes, p.format, true,
      [&](float amax) { return ds_mla_tile_scale(amax, p.format); },
      [](float scale) { return __float_as_uint(scale); });
}

inline int source_alignment(const ConcatAndCacheMlaParams& p) {
  const int64_t bytes = num_bytes(p.dtype);
  return common_alignment(16,
                          {address(p.kv_c), p.latent_size * bytes, p.kv_c_stride_token * bytes,
                           p.rope_size == 0 ? 0 : address(p.k_pe) | p.rope_size * bytes | p.k_pe_stride_token * bytes});
}

inline int cache_alignment(const ConcatAndCacheMlaParams& p) {
  const int64_t bytes = p.is_ds_mla ? 1 : num_bytes(p.format, p.dtype);
  return common_alignment(16, {address(p.kv_cache), p.latent_size * bytes, p.rope_size * bytes,
                               p.kv_cache_stride_block * bytes, p.kv_cache_stride_slot * bytes});
}

}  // namespace multikv::gpu
