// Writing entries of the cache of multi-head latent attention.
#pragma once

#include "cpu/isa/codec/quantised_tile.h"
#include "cpu/isa/simd/line_writer.h"

namespace multikv::cpu {
namespace {

// The entries of the cache, each a token's latent and rotary key.
class EntryWriter {
 public:
  EntryWriter(const ConcatAndCacheMlaParams& p, Stores stores)
      : p_(p), lines_(stores), scale_(p.scale == nullptr ? 1.0f : *p.scale),
        quantise_(p.format, p.dtype, {&scale_, 0, 1, p.slots.num_tokens * (p.latent_size + p.rope_size)}),
        write_ds_mla_(ds_mla_for(p.format, p.dtype)), source_bytes_(num_bytes(p.dtype)),
        cache_bytes_(p.is_ds_mla ? 1 : num_bytes(p.format, p.dtype)) {}

  void write(int64_t token, int64_t block, int64_t offset) {
    const char* kv_c = static_cast<const char*>(p_.kv_c) + token * p_.kv_c_stride_token * source_bytes_;
    const char* k_pe = static_cast<const char*>(p_.k_pe) + token * p_.k_pe_stride_token * source_bytes_;
    char* to = static_cast<char*>(p_.kv_cache) +
               (block * p_.kv_cache_stride_block + offset * p_.kv_cache_stride_slot) * cache_bytes_;
    if (p_.is_ds_mla) {
      write_ds_mla_(lines_.place(to, DsMlaEntry::kBytes), kv_c, p_.rope_size == 0 ? nullptr : k_pe);
    } else if (!quantise_) {
      lines_.copy_piece(to, kv_c, p_.latent_size * source_bytes_);
      lines_.copy_piece(to + p_.latent_size * source_bytes_, k_pe, p_.rope_size * source_bytes_);
    } else {
      quantise_pieces(to, kv_c, p_.latent_size);
      quantise_pieces(to + p_.latent_size, k_pe, p_.rope_size);
    }
  }

 private:
  using WriteDsMla = void (*)(char* to, const char* kv_c, const char* k_pe);

  template <CacheFormat kFormat, class Input>
  static void write_ds_mla(char* to, const char* kv_c, const char* k_pe) {
    using Entry = DsMlaEntry;
    constexpr int kTiles = Entry::kLatentSize / Entry::kTileSize;
    const auto* from = reinterpret_cast<const Input*>(kv_c);
    float scales[kTiles];
    for (int i = 0; i < kTiles; ++i) {
      scales[i] = ds_mla_tile_scale(tile_amax(from + i * Entry::kTileSize, Entry::kTileSize), kFormat);
    }
    for (int i = 0; i < kTiles; ++i) {
      quantise_tile<kFormat, true>(reinterpret_cast<uint8_t*>(to) + i * Entry::kTileSize, from + i * Entry::kTileSize,
                                   Entry::kTileSize, scales[i]);
    }
    std::memcpy(to + Entry::kScalesAt, scales, sizeof scales);
    constexpr int kRopeBytes = Entry::kRopeSize * sizeof(Input);
    if (k_pe == nullptr) std::memset(to + Entry::kRopeAt, 0, kRopeBytes);
    else std::memcpy(to + Entry::kRopeAt, k_pe, kRopeBytes);
  }

  // Its inputs have 16 bits and its codes are e4m3; other entries have no use for it.
  static WriteDsMla ds_mla_for(CacheFormat format, Float dtype) {
    if (format == CacheFormat::kE4M3FNUZ) {
      return dtype == Float::kFloat16 ? write_ds_mla<CacheFormat::kE4M3FNUZ, Half>
                                      : write_ds_mla<CacheFormat::kE4M3FNUZ, BFloat16>;
    }
    return dtype == Float::kFloat16 ? write_ds_mla<CacheFormat::kE4M3FN, Half>
                                    : write_ds_mla<CacheFormat::kE4M3FN, BFloat16>;
  }

  void quantise_pieces(char* to, const char* from, int64_t count) {
    if (count >= 4 * 64 && lines_.is_streamed_by_caller(to, count)) {
      quantise_(to, from, {.count = count}, scale_, Stores::kStreaming);
      return;
    }
    for (int64_t begin = 0; begin < count; begin += LineWriter::kMaxPiece) {
      const int64_t length = count - begin < LineWriter::kMaxPiece ? count - begin : LineWriter::kMaxPiece;
      quantise_(lines_.place(to + begin, length), from + begin * source_bytes_, {.count = length}, scale_,
                Stores::kOrdinary);
    }
  }

  const ConcatAndCacheMlaParams& p_;
  LineWriter lines_;
  const float scale_;
  const Quantiser quantise_;
  const WriteDsMla write_ds_mla_;
  const int64_t source_bytes_, cache_bytes_;
};

}  // namespace
}  // namespace multikv::cpu
