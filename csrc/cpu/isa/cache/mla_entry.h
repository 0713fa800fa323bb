// Writes entries of an MLA cache: the latent vector of a token, followed by its rotary key.
#pragma once

#include "cpu/isa/codec/quantise.h"
#include "cpu/isa/codec/quantised_tile.h"
#include "cpu/isa/simd/line_writer.h"
#include "params/mla_params.h"

namespace multikv::cpu {
namespace {

using WriteDsMlaEntry = void (*)(char* to, const char* kv_c, const char* k_pe);

// Prefetches the tile that lies kBytesAhead bytes after `from`. The computation of a tile's amax is short. Without
// prefetches it would wait for memory at every tile. Prefetches were measured with AVX2 only.
template <FloatOf16Bits Input>
[[gnu::always_inline]] inline void prefetch_tile_ahead(const Input* from) {
  constexpr int64_t kBytesAhead = 2048, kTileBytes = DsMlaEntry::kTileSize * sizeof(Input);
  if constexpr (kIsa == Isa::kAvx2) {
    for (int64_t i = 0; i < kTileBytes; i += kCacheLine) {
      prefetch(reinterpret_cast<const char*>(from) + kBytesAhead + i);
    }
  }
}

// Writes one fp8_ds_mla entry (core/cache_view.h). If k_pe is nullptr, the rotary key of the entry is zeros.
template <Element kElement, FloatOf16Bits Input>
void write_ds_mla_entry(char* to, const char* kv_c, const char* k_pe) {
  constexpr int kTileSize = DsMlaEntry::kTileSize, kNumTiles = DsMlaEntry::kLatentSize / kTileSize;
  const auto* from = reinterpret_cast<const Input*>(kv_c);
  float scales[kNumTiles];
  for (int i = 0; i < kNumTiles; ++i) {
    scales[i] = ds_mla_tile_scale(tile_amax(from + i * kTileSize, kTileSize), kElement);
  }
  for (int i = 0; i < kNumTiles; ++i) {
    prefetch_tile_ahead(from + i * kTileSize);
    quantise_tile<kElement, true>(reinterpret_cast<uint8_t*>(to) + i * kTileSize, from + i * kTileSize, kTileSize,
                                  scales[i]);
  }
  std::memcpy(to + DsMlaEntry::kScalesAt, scales, sizeof scales);
  constexpr int kRopeBytes = DsMlaEntry::kRopeSize * sizeof(Input);
  if (k_pe == nullptr) std::memset(to + DsMlaEntry::kRopeAt, 0, kRopeBytes);
  else std::memcpy(to + DsMlaEntry::kRopeAt, k_pe, kRopeBytes);
}

// Returns nullptr if the format is not fp8_ds_mla. The inputs of fp8_ds_mla are float16 or bfloat16.
inline WriteDsMlaEntry write_ds_mla_entry_for(const ConcatAndCacheMlaParams& p) {
  if (!p.is_ds_mla()) return nullptr;
  return with_e4m3(p.codec().element, [&]<Element kElement>() -> WriteDsMlaEntry {
    if (p.dtype == Float::kFloat16) return write_ds_mla_entry<kElement, Float16>;
    return write_ds_mla_entry<kElement, BFloat16>;
  });
}

class EntryWriter {
 public:
  EntryWriter(const ConcatAndCacheMlaParams& p, Stores stores)
      : p_(p), lines_(stores), scale_(p.cache.scale == nullptr ? 1.0f : *p.cache.scale),
        quantise_(p.codec().element, p.dtype,
                  {.data = &scale_,
                   .stride = 0,
                   .num_scales = 1,
                   .num_elements = p.slots.num_tokens * (p.latent_size + p.rope_size)}),
        write_ds_mla_(write_ds_mla_entry_for(p)), source_bytes_(num_bytes(p.dtype)) {}

  void write(int64_t token, BlockOffset at) {
    const char* kv_c = p_.kv_c.row(token);
    const char* k_pe = p_.k_pe.row(token);
    char* to = p_.cache.entry(at);
    if (write_ds_mla_ != nullptr) {
      write_ds_mla_(lines_.buffer_for(to, DsMlaEntry::kBytes), kv_c, p_.rope_size == 0 ? nullptr : k_pe);
    } else if (!quantise_) {
      lines_.copy_piece(to, kv_c, p_.latent_size * source_bytes_);
      lines_.copy_piece(to + p_.latent_size * source_bytes_, k_pe, p_.rope_size * source_bytes_);
    } else {
      quantise_pieces(to, kv_c, p_.latent_size);
      quantise_pieces(to + p_.latent_size, k_pe, p_.rope_size);
    }
  }

 private:
  void quantise_pieces(char* to, const char* from, int64_t count) {
    constexpr int64_t kMinStreamed = 4 * kCacheLine;
    if (count >= kMinStreamed && lines_.leaves_to_caller(to, count)) {
      quantise_(to, from, {.count = count}, scale_, Stores::kStreaming);
      return;
    }
    for (int64_t begin = 0; begin < count; begin += LineWriter::kMaxPiece) {
      const int64_t length = count - begin < LineWriter::kMaxPiece ? count - begin : LineWriter::kMaxPiece;
      quantise_(lines_.buffer_for(to + begin, length), from + begin * source_bytes_, {.count = length}, scale_,
                Stores::kOrdinary);
    }
  }

  const ConcatAndCacheMlaParams& p_;
  LineWriter lines_;
  const float scale_;
  const Quantiser quantise_;
  const WriteDsMlaEntry write_ds_mla_;
  const int64_t source_bytes_;
};

}  // namespace
}  // namespace multikv::cpu
