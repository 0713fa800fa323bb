// Writes units into the strips of a packed cache (packed_strips.h). This transposes tokens x units to strips x slots.
#pragma once

#include <bit>

#include "cpu/isa/cache/packed_strips.h"
#include "cpu/isa/simd/transpose.h"

namespace multikv::cpu {
namespace {

// Transposes the units of kStrips strips at a time, in vector registers.
class StripWriter {
 public:
  static constexpr int64_t kMaxTokens = 64;

  StripWriter(const PackedStrips& strips, Stores stores)
      : strip_stride_(strips.strip_stride_bytes), is_streaming_(stores == Stores::kStreaming),
        write_(strips.slot_stride_bytes == strips.unit_bytes ? write_for(strips.unit_bytes) : nullptr) {}

  // Returns false if the StripWriter does not support the layout: there are gaps between the units of a strip, or the
  // size of a unit is not 1, 2, 4, 8 or 16 bytes.
  explicit operator bool() const { return write_ != nullptr; }

  // Writes num_units units of each of num_tokens <= kMaxTokens tokens, whose sources are source_stride bytes apart.
  void operator()(char* cache, const char* source, int64_t source_stride, int64_t num_tokens, int64_t num_units) {
    (this->*write_)(cache, source, source_stride, num_tokens, num_units);
  }

 private:
  using Write = void (StripWriter::*)(char* cache, const char* source, int64_t source_stride, int64_t num_tokens,
                                      int64_t num_units);

  // A token group is kTokens consecutive tokens; a strip set is kTokens consecutive strips.
  //
  // A segment of a vector holds the units of kTokens tokens in one strip. So a vector holds units of kNumSegments
  // strips, and kTokens vectors hold units of kStrips = kTokens * kNumSegments strips.
  template <class Unit> static constexpr int64_t kTokens = kSegmentBytes / sizeof(Unit);
  template <class Unit> static constexpr int64_t kStrips = kTokens<Unit> * kNumSegments;

  template <class Unit>
  static int64_t num_token_groups(int64_t num_tokens) {
    return (num_tokens + kTokens<Unit> - 1) / kTokens<Unit>;
  }

  static Write write_for(int64_t unit_bytes) {
    switch (unit_bytes) {
      case 1: return &StripWriter::write_units<uint8_t>;
      case 2: return &StripWriter::write_units<uint16_t>;
      case 4: return &StripWriter::write_units<uint32_t>;
      case 8: return &StripWriter::write_units<uint64_t>;
      case 16: return &StripWriter::write_units<Bytes16>;
      default: return nullptr;
    }
  }

  template <class Unit>
  void write_units(char* cache, const char* source, int64_t source_stride, int64_t num_tokens, int64_t num_units) {
    if (num_tokens < kTokens<Unit> || num_units < kStrips<Unit>) {
      write_unit_by_unit<Unit>(cache, source, source_stride, num_tokens, num_units);
      return;
    }
    for (int64_t unit = 0; unit < num_units; unit += kStrips<Unit>) {
      // If fewer than kStrips strips are left, the last iteration begins earlier and writes some strips a second time,
      // with the same bytes.
      const int64_t first = unit < num_units - kStrips<Unit> ? unit : num_units - kStrips<Unit>;
      read_units<Unit>(source + first * static_cast<int64_t>(sizeof(Unit)), source_stride, num_tokens);
      write_strips<Unit>(cache + first * strip_stride_, num_tokens);
    }
  }

  template <class Unit>
  void write_unit_by_unit(char* cache, const char* source, int64_t source_stride, int64_t num_tokens,
                          int64_t num_units) const {
    constexpr int64_t kBytes = sizeof(Unit);
    const int64_t strip_stride = strip_stride_;  // copied, because a store through char* might change the member
    for (int64_t i = 0; i < num_tokens; ++i, cache += kBytes, source += source_stride) {
#pragma GCC unroll 4
      for (int64_t unit = 0; unit < num_units; ++unit) {
        std::memcpy(cache + unit * strip_stride, source + unit * kBytes, kBytes);
      }
    }
  }

  // Fills units_ with kStrips units of each token. Each vector of units_ holds the units of one token group. Each of
  // its segments of 128 bits belongs to one strip, and segment s to a strip of strip set s. For token group g:
  //
  //                                   segment 0    segment 1
  //   units_[g]                     | strip 0    | strip kTokens     | ..
  //   units_[token_groups + g]      | strip 1    | strip kTokens + 1 | ..
  //   units_[j * token_groups + g]  | strip j    | strip kTokens + j | ..
  template <class Unit>
  void read_units(const char* source, int64_t source_stride, int64_t num_tokens) {
    using UnitSegments = Segments<Unit>;
    const int64_t token_groups = num_token_groups<Unit>(num_tokens);
    for (int64_t group = 0; group < token_groups; ++group) {
      typename UnitSegments::Vector vectors[kTokens<Unit>];
#pragma GCC unroll 16
      for (int64_t i = 0; i < kTokens<Unit>; ++i) {
        const int64_t token = group * kTokens<Unit> + i;
        const char* from = source + (token < num_tokens ? token : num_tokens - 1) * source_stride;
        std::memcpy(&vectors[i], from, sizeof vectors[i]);
      }
      UnitSegments::transpose(vectors);
      for (int64_t j = 0; j < kTokens<Unit>; ++j)
        std::memcpy(&units_[j * token_groups + group], &vectors[j], sizeof(Bytes));
    }
  }

  template <class Unit>
  void write_strips(char* cache, int64_t num_tokens) {
    constexpr int64_t kBytes = sizeof(Unit);
    // A piece is a part of the cache whose segments are contiguous: one strip or, if the written part of each strip
    // ends where the next strip begins (is_dense), a whole strip set.
    const bool is_dense = num_tokens * kBytes == strip_stride_;
    const int64_t num_pieces = is_dense ? 1 : kTokens<Unit>;
    const int64_t segments_per_piece = kTokens<Unit> * num_token_groups<Unit>(num_tokens) / num_pieces;
    if (num_tokens % kTokens<Unit> != 0 || segments_per_piece % kNumSegments != 0) {
      write_segments<Unit>(cache, num_tokens);
      return;
    }
    const int64_t strip_set_stride = kTokens<Unit> * strip_stride_;
    const int64_t strides = strip_set_stride | (is_dense ? 0 : strip_stride_) | segments_per_piece * kSegmentBytes;
    const bool has_lines = are_whole_cache_lines(reinterpret_cast<intptr_t>(cache) | strides);
    if (is_streaming_ && has_lines) write_vectors(cache, strip_set_stride, num_pieces, segments_per_piece, stream);
    else write_vectors(cache, strip_set_stride, num_pieces, segments_per_piece, store);
  }

  // Writes units_ in whole vectors. Segment k of each vector of units_ belongs to a strip of strip set k.
  // transpose_segments() puts segments of one strip set, which are contiguous in the cache, into one vector:
  //
  //            vectors of units_                  after transpose_segments()
  //            of set 0    of set 1               contiguous in the cache
  //   [0]    | segment i   | segment i   | ..     | segment i | segment i+1 | ..    of set 0
  //   [1]    | segment i+1 | segment i+1 | ..     | segment i | segment i+1 | ..    of set 1
  template <class Put>
    requires(requires(const Put& put, char* to, Bytes value) { put(to, value); })
  [[gnu::always_inline]] void write_vectors(char* cache, int64_t strip_set_stride, int64_t num_pieces,
                                            int64_t segments_per_piece, const Put& put) const {
    using Vector = SegmentVector<kNumSegments>::Type;
    for (int64_t j = 0; j < num_pieces; ++j) {
      for (int64_t i = 0; i < segments_per_piece; i += kNumSegments) {
        Vector vectors[kNumSegments];
#pragma GCC unroll 4
        for (int k = 0; k < kNumSegments; ++k)
          vectors[k] = std::bit_cast<Vector>(units_[j * segments_per_piece + i + k]);
        transpose_segments<kNumSegments>(vectors);
#pragma GCC unroll 4
        for (int k = 0; k < kNumSegments; ++k) {
          put(cache + k * strip_set_stride + j * strip_stride_ + i * kSegmentBytes, std::bit_cast<Bytes>(vectors[k]));
        }
      }
    }
  }

  // Writes units_ segment by segment. The units after the last whole segment of a strip are written one by one.
  template <class Unit>
  void write_segments(char* cache, int64_t num_tokens) const {
    constexpr int64_t kBytes = sizeof(Unit);
    const int64_t token_groups = num_token_groups<Unit>(num_tokens);
    for (int64_t strip = 0; strip < kStrips<Unit>; ++strip) {
      char* to = cache + strip * strip_stride_;
      const char* from = reinterpret_cast<const char*>(&units_[strip % kTokens<Unit> * token_groups]) +
                         strip / kTokens<Unit> * kSegmentBytes;
      for (int64_t token = 0; token < num_tokens; token += kTokens<Unit>, to += kSegmentBytes, from += sizeof(Bytes)) {
        if (num_tokens - token >= kTokens<Unit>) {
          std::memcpy(to, from, kSegmentBytes);
        } else {
          for (int64_t i = 0; i < (num_tokens - token) * kBytes; i += kBytes) std::memcpy(to + i, from + i, kBytes);
        }
      }
    }
  }

  const int64_t strip_stride_;
  const bool is_streaming_;
  const Write write_;
  alignas(64) Bytes units_[kMaxTokens];
};

}  // namespace
}  // namespace multikv::cpu
