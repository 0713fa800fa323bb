#include "line_writer.h"
#include "slots.h"
#include "tile.h"

namespace multikv::cpu {
namespace {

// One tile's codes to `to`; returns their scale.
template <CacheFormat kFormat, class Input>
float write_tile(LineWriter& lines, char* to, const Input* from, int64_t count, ScaleFormat scale_format) {
  const float scale = indexer_tile_scale(tile_amax(from, count), kFormat, scale_format);
  for (int64_t begin = 0; begin < count; begin += LineWriter::kMaxPiece) {
    const int64_t length = count - begin < LineWriter::kMaxPiece ? count - begin : LineWriter::kMaxPiece;
    auto* codes = reinterpret_cast<uint8_t*>(lines.place(to + begin, length));
    quantise<kFormat>(codes, from + begin, length, scale, Stores::kOrdinary);
  }
  return scale;
}

template <CacheFormat kFormat, class Input>
void write_tokens(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  LineWriter lines(stores);
  const int64_t tiles = p.head_size / p.quant_block_size;
  const int64_t scales_at = static_cast<int64_t>(p.slots.block_size.value) * p.head_size;
  for_each_token(p.slots, begin, end, [&](int64_t token, int64_t block, int64_t offset) {
    const Input* from = static_cast<const Input*>(p.k) + token * p.k_stride_token;
    char* cache = static_cast<char*>(p.kv_cache) + block * p.kv_cache_stride_block_bytes;
    char* codes = cache + offset * p.head_size;
    char* scales = cache + scales_at + offset * tiles * 4;
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t at = i * p.quant_block_size;
      const float scale = write_tile<kFormat>(lines, codes + at, from + at, p.quant_block_size, p.scale_format);
      const uint32_t stored = stored_tile_scale(scale, p.scale_format);
      std::memcpy(scales + i * 4, &stored, sizeof stored);
    }
  });
}

template <CacheFormat kFormat>
void write_tokens_from(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  switch (p.dtype) {
    case Float::kFloat32: return write_tokens<kFormat, float>(p, begin, end, stores);
    case Float::kFloat16: return write_tokens<kFormat, Half>(p, begin, end, stores);
    case Float::kBFloat16: return write_tokens<kFormat, BFloat16>(p, begin, end, stores);
  }
}

}  // namespace

template <>
void indexer_k_quant_and_cache<kIsa>(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  if (p.format == CacheFormat::kE4M3FNUZ) write_tokens_from<CacheFormat::kE4M3FNUZ>(p, begin, end, stores);
  else write_tokens_from<CacheFormat::kE4M3FN>(p, begin, end, stores);
}

}  // namespace multikv::cpu
