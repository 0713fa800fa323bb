#include "cpu/isa/cache/slots.h"
#include "cpu/isa/codec/quantised_tile.h"
#include "cpu/isa/simd/line_writer.h"

namespace multikv::cpu {
namespace {

// Some tiles at once, because from a tile's elements to its codes it is a long way that others can share.
// kSize: the size of a tile, or 0 if that is not known.
template <CacheFormat kFormat, class Input, int64_t kSize>
class TileWriter {
 public:
  TileWriter(const IndexerKQuantAndCacheParams& p, Stores stores)
      : size_(p.quant_block_size), scale_format_(p.scale_format), lines_(stores) {}
  ~TileWriter() { flush(); }

  void write(char* codes, char* scale, const Input* from) {
    tiles_[num_tiles_] = {codes, scale, from};
    amax_[num_tiles_] = tile_amax(from, size());
    if (++num_tiles_ == kMaxTiles) flush();
  }

 private:
  static constexpr int kMaxTiles = 16;
  struct Tile {
    char* codes;
    char* scale;
    const Input* from;
  };

  int64_t size() const { return kSize == 0 ? size_ : kSize; }

  void flush() {
    float scales[kMaxTiles];
    for (int i = 0; i < kMaxTiles; ++i) scales[i] = indexer_tile_scale(amax_[i], kFormat, scale_format_);
    for (int i = 0; i < num_tiles_; ++i) {
      const uint32_t stored = stored_tile_scale(scales[i], scale_format_);
      std::memcpy(tiles_[i].scale, &stored, sizeof stored);
    }
    for (int i = 0; i < num_tiles_; ++i) {
      if (scale_format_ == ScaleFormat::kFloat32) quantise<false>(tiles_[i], scales[i]);
      else quantise<true>(tiles_[i], scales[i]);
    }
    num_tiles_ = 0;
  }

  template <bool kIsPowerOfTwo>
  void quantise(const Tile& tile, float scale) {
    for (int64_t begin = 0; begin < size(); begin += LineWriter::kMaxPiece) {
      const int64_t length = size() - begin < LineWriter::kMaxPiece ? size() - begin : LineWriter::kMaxPiece;
      char* to = tile.codes + begin;
      // Whole lines leave at once: many of them one after the other would wait for memory, and what is read next with
      // them.
      const bool is_whole_lines = lines_.is_streamed_by_caller(to, length);
      char* codes = is_whole_lines ? codes_ : lines_.place(to, length);
      quantise_tile<kFormat, kIsPowerOfTwo>(reinterpret_cast<uint8_t*>(codes), tile.from + begin, length, scale);
      if (is_whole_lines) copy(to, codes_, length, Stores::kStreaming);
    }
  }

  const int64_t size_;
  const ScaleFormat scale_format_;
  LineWriter lines_;
  int num_tiles_ = 0;
  Tile tiles_[kMaxTiles];
  float amax_[kMaxTiles] = {};
  alignas(64) char codes_[LineWriter::kMaxPiece];
};

template <CacheFormat kFormat, class Input, int64_t kSize>
void write_tokens(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  TileWriter<kFormat, Input, kSize> writer(p, stores);
  const int64_t tiles = p.head_size / p.quant_block_size;
  const int64_t scales_at = static_cast<int64_t>(p.slots.block_size.value) * p.head_size;
  for_each_token(p.slots, begin, end, [&](int64_t token, int64_t block, int64_t offset) {
    const Input* from = static_cast<const Input*>(p.k) + token * p.k_stride_token;
    char* cache = static_cast<char*>(p.kv_cache) + block * p.kv_cache_stride_block_bytes;
    char* codes = cache + offset * p.head_size;
    char* scales = cache + scales_at + offset * tiles * 4;
    for (int64_t i = 0; i < tiles; ++i) {
      writer.write(codes + i * p.quant_block_size, scales + i * 4, from + i * p.quant_block_size);
    }
  });
}

template <CacheFormat kFormat, class Input>
void write_tokens_from(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  if (p.quant_block_size == 128) write_tokens<kFormat, Input, 128>(p, begin, end, stores);
  else write_tokens<kFormat, Input, 0>(p, begin, end, stores);
}

template <CacheFormat kFormat>
void write_tokens_as(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  switch (p.dtype) {
    case Float::kFloat32: return write_tokens_from<kFormat, float>(p, begin, end, stores);
    case Float::kFloat16: return write_tokens_from<kFormat, Half>(p, begin, end, stores);
    case Float::kBFloat16: return write_tokens_from<kFormat, BFloat16>(p, begin, end, stores);
  }
}

}  // namespace

template <>
void indexer_k_quant_and_cache<kIsa>(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  if (p.format == CacheFormat::kE4M3FNUZ) write_tokens_as<CacheFormat::kE4M3FNUZ>(p, begin, end, stores);
  else write_tokens_as<CacheFormat::kE4M3FN>(p, begin, end, stores);
}

}  // namespace multikv::cpu
