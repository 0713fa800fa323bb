#include "cpu/isa/cache/byte_rows.h"
#include "cpu/isa/cache/gather_runs.h"
#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/codec/quantised_tile.h"
#include "cpu/isa/simd/line_writer.h"
#include "params/indexer_params.h"

namespace multikv::cpu {
namespace {

// Quantises 16 tiles at a time: amax -> scale -> codes is one dependent chain, and independent tiles hide its latency.
// kSize is the number of elements of a tile, or 0 if that number is known only at run time.
template <Element kElement, FloatElement Input, int64_t kSize>
class TileWriter {
 public:
  TileWriter(const IndexerKQuantAndCacheParams& p, Stores stores)
      : size_(p.quant_block_size), scale_type_(p.codec().scale_type), lines_(stores) {}
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
    for (int i = 0; i < kMaxTiles; ++i) scales[i] = indexer_tile_scale(amax_[i], kElement, scale_type_);
    for (int i = 0; i < num_tiles_; ++i) {
      const uint32_t stored = stored_tile_scale(scales[i], scale_type_);
      std::memcpy(tiles_[i].scale, &stored, sizeof stored);
    }
    for (int i = 0; i < num_tiles_; ++i) {
      if constexpr (kPrefetches) prefetch_tile(tiles_[i].from + kMaxTiles * size());
      if (scale_type_ == ScaleType::kFloat32) quantise<false>(tiles_[i], scales[i]);
      else quantise<true>(tiles_[i], scales[i]);
    }
    num_tiles_ = 0;
  }

  // Prefetches what lies kMaxTiles tiles further on: if tokens are contiguous, a tile of the next flush(). The
  // computation of a tile's amax is short. Without prefetches it would wait for memory at every tile. With AVX-512,
  // prefetches make the op slower (docs/performance_cpu.md).
  static constexpr bool kPrefetches = kIsa == Isa::kAvx2;
  [[gnu::always_inline]] void prefetch_tile(const Input* from) const {
    const int64_t num_bytes = size() * static_cast<int64_t>(sizeof(Input));
    for (int64_t i = 0; i < num_bytes; i += kCacheLine) prefetch(reinterpret_cast<const char*>(from) + i);
  }

  template <bool kIsPowerOfTwo>
  void quantise(const Tile& tile, float scale) {
    for (int64_t begin = 0; begin < size(); begin += LineWriter::kMaxPiece) {
      const int64_t length = size() - begin < LineWriter::kMaxPiece ? size() - begin : LineWriter::kMaxPiece;
      char* to = tile.codes + begin;
      // Whole cache lines are streamed here. The line writer would collect the lines of many tiles and stream them
      // together, which fills the write-combining buffers and delays the loads of the next tiles.
      const bool is_whole_lines = lines_.leaves_to_caller(to, length);
      char* codes = is_whole_lines ? codes_ : lines_.buffer_for(to, length);
      quantise_tile<kElement, kIsPowerOfTwo>(reinterpret_cast<uint8_t*>(codes), tile.from + begin, length, scale);
      if (is_whole_lines) copy(to, codes_, length, Stores::kStreaming);
    }
  }

  const int64_t size_;
  const ScaleType scale_type_;
  LineWriter lines_;
  int num_tiles_ = 0;
  Tile tiles_[kMaxTiles];
  float amax_[kMaxTiles] = {};
  alignas(64) char codes_[LineWriter::kMaxPiece];
};

template <Element kElement, FloatElement Input, int64_t kSize>
void write_tokens(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  TileWriter<kElement, Input, kSize> writer(p, stores);
  const int64_t num_tiles = p.head_size / p.quant_block_size;
  for_each_token(p.slots, p.blocks(), begin, end, [&](int64_t token, BlockOffset at) {
    const auto* from = reinterpret_cast<const Input*>(p.k.row(token));
    char* codes = p.cache.codes(at);
    char* scales = p.cache.scales(at);
    for (int64_t i = 0; i < num_tiles; ++i) {
      writer.write(codes + i * p.quant_block_size, scales + i * 4, from + i * p.quant_block_size);
    }
  });
}

}  // namespace

template <>
void run<kIsa>(const IndexerKQuantAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_e4m3(p.codec().element, [&]<Element kElement>() {
    with_float(p.dtype, [&]<FloatElement Input>() {
      if (p.quant_block_size == 128) write_tokens<kElement, Input, 128>(p, begin, end, stores);
      else write_tokens<kElement, Input, 0>(p, begin, end, stores);
    });
  });
}

template <>
void run<kIsa>(const CpGatherIndexerKQuantCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  const ByteRows keys{p.dst_k, p.cache.code_bytes, p.cache.code_bytes};
  const ByteRows scales{p.dst_scale, p.cache.scale_bytes, p.cache.scale_bytes};
  for_each_run(p.sequences, begin, end, [&](const GatherRun& run, const GatherRun* next) {
    const char* next_codes = next ? p.cache.codes(next->at) : nullptr;
    const char* next_scales = next ? p.cache.scales(next->at) : nullptr;
    keys.copy_from(p.cache.codes(run.at), run.row, run.count, stores, next_codes);
    // The scales of a run are few bytes, often less than a cache line, so they are written with ordinary stores.
    scales.copy_from(p.cache.scales(run.at), run.row, run.count, Stores::kOrdinary, next_scales);
  });
  finish(stores);
}

}  // namespace multikv::cpu
