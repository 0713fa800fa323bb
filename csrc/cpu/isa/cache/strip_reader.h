// Reads units from the strips of a packed cache (packed_strips.h). This transposes strips x slots to tokens x units.
#pragma once

#include <bit>

#include "cpu/isa/cache/packed_strips.h"
#include "cpu/isa/simd/prefetch.h"
#include "cpu/isa/simd/transpose.h"

namespace multikv::cpu {
namespace {

// The unit of the first token in the first strip that is read.
struct StripSource {
  const char* data;
  int64_t ahead_bytes;  // the distance from what is read to what is prefetched
};

// The tokens and units that are read, and the rows of units that they become.
struct StripRows {
  int64_t num_tokens, num_units;
  char* to;
  int64_t to_stride;
};

class StripReader {
 public:
  explicit StripReader(const PackedStrips& strips)
      : strips_(strips), read_(read_for(strips.slot_stride_bytes == strips.unit_bytes ? strips.unit_bytes : 0)) {}

  void operator()(const StripRows& rows, const StripSource& from) const { (this->*read_)(rows, from); }

 private:
  using Read = void (StripReader::*)(const StripRows& rows, const StripSource& from) const;

  // kVectorBytes: see Segments.
  template <class Unit, int kVectorBytes>
  struct Tile {
    using UnitSegments = Segments<Unit, kVectorBytes>;
    static constexpr int64_t kTokens = UnitSegments::kPerSegment, kUnits = kVectorBytes / kSegmentBytes * kTokens;

    // Reads kUnits units of kTokens tokens. Segment s of vector j is read from strip s * kTokens + j.
    [[gnu::always_inline]] static void read(char* to, int64_t to_stride, const char* from, int64_t strip_stride) {
      typename UnitSegments::Vector vectors[kTokens];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kTokens; ++j) {
        const char* strip = from + j * strip_stride;
        if constexpr (kVectorBytes == kSegmentBytes) std::memcpy(&vectors[j], strip, kSegmentBytes);
        else vectors[j] = std::bit_cast<typename UnitSegments::Vector>(load_segments(strip, kTokens * strip_stride));
      }
      UnitSegments::transpose(vectors);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kTokens; ++j) std::memcpy(to + j * to_stride, &vectors[j], kVectorBytes);
    }
  };

  static Read read_for(int64_t unit_bytes) {
    switch (unit_bytes) {
      case 1: return &StripReader::read_units<uint8_t>;
      case 2: return &StripReader::read_units<uint16_t>;
      case 4: return &StripReader::read_units<uint32_t>;
      case 8: return &StripReader::read_units<uint64_t>;
      case 16: return &StripReader::read_units<Bytes16>;
      default: return &StripReader::read_unit_by_unit;
    }
  }

  template <class Unit>
  void read_units(const StripRows& rows, const StripSource& from) const {
    using Small = Tile<Unit, kSegmentBytes>;
    using Large = Tile<Unit, sizeof(Bytes)>;
    if (rows.num_tokens < Small::kTokens || rows.num_units < Small::kUnits) read_unit_by_unit(rows, from);
    else if (rows.num_units < Large::kUnits) read_tiles<Small>(rows, from);
    else read_tiles<Large>(rows, from);
  }

  // If a tile would reach past the last unit or token, it begins earlier, and writes some units a second time.
  template <class Tile>
  void read_tiles(const StripRows& rows, const StripSource& from) const {
    const int64_t unit_bytes = kSegmentBytes / Tile::kTokens, strip_stride = strips_.strip_stride_bytes;
    // Strips that share a cache line are prefetched once.
    const int64_t step = strip_stride > 0 && strip_stride < kCacheLine ? kCacheLine / strip_stride : 1;
    for (int64_t i = 0; i < rows.num_units; i += Tile::kUnits) {
      const int64_t unit = i < rows.num_units - Tile::kUnits ? i : rows.num_units - Tile::kUnits;
      const char* strips = from.data + unit * strip_stride;
      for (int64_t j = 0; j < rows.num_tokens; j += Tile::kTokens) {
        const int64_t token = j < rows.num_tokens - Tile::kTokens ? j : rows.num_tokens - Tile::kTokens;
        if (j * unit_bytes % kCacheLine == 0) {
          for (int64_t k = 0; k < Tile::kUnits; k += step) {
            prefetch(strips + k * strip_stride + j * unit_bytes + from.ahead_bytes);
          }
        }
        Tile::read(rows.to + token * rows.to_stride + unit * unit_bytes, rows.to_stride, strips + token * unit_bytes,
                   strip_stride);
      }
    }
  }

  void read_unit_by_unit(const StripRows& rows, const StripSource& from) const {
    for (int64_t unit = 0; unit < rows.num_units; ++unit) {
      for (int64_t token = 0; token < rows.num_tokens; ++token) {
        std::memcpy(rows.to + token * rows.to_stride + unit * strips_.unit_bytes,
                    from.data + unit * strips_.strip_stride_bytes + token * strips_.slot_stride_bytes,
                    strips_.unit_bytes);
      }
    }
  }

  const PackedStrips strips_;
  const Read read_;
};

}  // namespace
}  // namespace multikv::cpu
