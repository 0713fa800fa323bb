// Writes MLA entries: a latent vector and a rotary key side by side, or an fp8_ds_mla entry.
#pragma once

#include "cuda/cache/write_tokens.cuh"
#include "cuda/core/quantised_tile.cuh"
#include "params/mla_params.h"

namespace multikv::gpu {

// Writes a thread's part of a chunk of entries: the latent vectors, and behind them the first rope_bytes bytes of the
// rotary keys. Computes part.num_vectors.
template <VectorMove Move, int kUnroll, bool kOnce, class IndexOf>
__device__ __forceinline__ void write_entries(const ConcatAndCacheMlaParams& p, int64_t rope_bytes, ChunkPart part,
                                              IndexOf index_of) {
  const int64_t latent_vectors = num_vectors<Move>(p.kv_c.row_bytes);
  part.num_vectors = latent_vectors + num_vectors<Move>(rope_bytes);
  const auto pointers_of = [&](int64_t vector) -> VectorPointers {
    const bool is_latent = vector < latent_vectors;
    const TokenRows& rows = is_latent ? p.kv_c : p.k_pe;
    return {rows.data + (is_latent ? vector : vector - latent_vectors) * Move::kSourceBytes,
            p.cache.data + vector * Move::kCacheBytes, rows.stride_token_bytes};
  };
  const TokenDestination to = {p.slots.num_tokens,
                               {p.blocks(), p.cache.stride_block_bytes, p.cache.stride_slot_bytes},
                               p.cache.scale,
                               p.codec().element};
  write_tokens<Move, kUnroll, kOnce>(to, part, index_of, pointers_of);
}

// Returns the entry of a slot, or nullptr if the index is not a slot of the cache.
__device__ inline char* entry_at(const EntryCache& cache, int64_t index) {
  return is_slot(cache.blocks, index) ? cache.entry(split(cache.blocks, index)) : nullptr;
}

// The TileScaling of fp8_ds_mla.
struct DsMlaScaling {
  Element element;

  __device__ static constexpr bool is_power_of_two() { return true; }
  __device__ float scale_of(float amax) const { return ds_mla_tile_scale(amax, element); }
  __device__ static uint32_t stored(float scale) { return __float_as_uint(scale); }
};

// Quantises the latent vector of a token into the codes and the scales of its fp8_ds_mla entry. One warp writes the
// entry, 8 lanes for each of its 4 tiles; all lanes must call. find_entry() returns the entry, or nullptr if the token
// is skipped. It is called after the loads of the latent vector are issued.
template <Float kDtype, bool kWide, bool kOnce, class FindEntry>
__device__ inline void write_ds_mla_latent(const ConcatAndCacheMlaParams& p, int64_t token, int lane,
                                           FindEntry find_entry) {
  constexpr int kElements = kWide ? 8 : 1, kLanes = 8;
  const int tile = lane / kLanes;
  const char* source = nullptr;
  if (token < p.slots.num_tokens) source = p.kv_c.row(token) + tile * (DsMlaEntry::kTileSize * num_bytes(kDtype));
  const auto pointers_of = [&]() -> TilePointers {
    char* entry = find_entry();
    if (entry == nullptr) return {nullptr, nullptr};
    return {entry + tile * DsMlaEntry::kTileSize, entry + DsMlaEntry::kScalesAt + tile * 4};
  };
  quantise_tile<kDtype, kElements, kOnce>(source, DsMlaEntry::kTileSize, GroupLane{lane % kLanes, kLanes},
                                          DsMlaScaling{p.codec().element}, pointers_of);
}

inline AlignmentBits source_alignment_bits(const ConcatAndCacheMlaParams& p) {
  const AlignmentBits latent = p.kv_c.alignment_bits();
  return p.rope_size == 0 ? latent : latent | p.k_pe.alignment_bits();
}

inline AlignmentBits cache_alignment_bits(const ConcatAndCacheMlaParams& p) {
  return p.cache.alignment_bits() | p.codec().num_bytes(p.latent_size) | p.codec().num_bytes(p.rope_size);
}

}  // namespace multikv::gpu
