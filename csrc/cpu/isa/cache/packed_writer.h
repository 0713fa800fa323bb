// Writing a packed cache: rows of what neighbouring slots hold at one place of a head, so that a token is a column.
#pragma once

#include "cpu/isa/codec/quantise.h"
#include "cpu/isa/simd/transpose.h"

namespace multikv::cpu {
namespace {

// One of key and value. An element here is what lies together: vector_size numbers of a key, one number of a value.
class PackedWriter {
 public:
  PackedWriter(const ReshapeAndCacheParams& p, bool is_key, Stores stores)
      : w_(is_key ? p.key : p.value), num_heads_(p.num_heads), head_size_(p.head_size),
        number_bytes_(num_bytes(p.format, p.dtype)), source_token_bytes_(w_.source_stride_token * num_bytes(p.dtype)),
        source_head_bytes_(w_.source_stride_head * num_bytes(p.dtype)), source_number_bytes_(num_bytes(p.dtype)),
        element_bytes_((is_key ? static_cast<int64_t>(w_.vector_size.value) : 1) * number_bytes_),
        slots_per_row_(static_cast<int64_t>((is_key ? p.slots.block_size : w_.vector_size).value)),
        row_stride_((is_key ? w_.cache_stride_vector : w_.cache_stride_row) * number_bytes_),
        slot_stride_((is_key ? w_.cache_stride_row : 1) * number_bytes_),
        group_stride_((is_key ? 0 : w_.cache_stride_vector) * number_bytes_),
        max_tokens_(is_key ? 16 : kLine / number_bytes_), is_streaming_(stores == Stores::kStreaming),
        quantise_(p.format, p.dtype,
                  {w_.scale, w_.scale_stride_head, w_.scale_stride_head == 0 ? 1 : num_heads_,
                   p.slots.num_tokens * num_heads_ * head_size_}),
        write_(slot_stride_ == element_bytes_ ? write_for(element_bytes_) : nullptr) {}

  // `count` tokens with neighbouring slots of a block.
  void write(int64_t token, int64_t count, int64_t block, int64_t offset) {
    while (count > 0) {
      const int64_t group = offset / slots_per_row_, column = offset - group * slots_per_row_;
      int64_t length = slots_per_row_ - column < count ? slots_per_row_ - column : count;
      length = length < max_tokens_ ? length : max_tokens_;
      char* cache = static_cast<char*>(w_.cache) + block * w_.cache_stride_block * number_bytes_ +
                    group * group_stride_ + column * slot_stride_;
      const char* source = static_cast<const char*>(w_.source) + token * source_token_bytes_;
      if (write_ == nullptr) write_elements(cache, source, length);
      else if (!quantise_) write_numbers(cache, source, length);
      else write_codes(cache, source, length);
      token += length;
      offset += length;
      count -= length;
    }
  }

 private:
  static constexpr int64_t kLine = 64, kMaxTokens = 64, kCodes = 16384;

  // Any layout, element by element.
  void write_elements(char* cache, const char* source, int64_t num_tokens) const {
    const int64_t numbers = element_bytes_ / number_bytes_;
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (int64_t head = 0; head < num_heads_; ++head) {
        char* to = cache + i * slot_stride_ + head * w_.cache_stride_head * number_bytes_;
        const char* from = source + i * source_token_bytes_ + head * source_head_bytes_;
        for (int64_t at = 0; at < head_size_; at += numbers) {
          if (!quantise_) copy(to, from, element_bytes_, Stores::kOrdinary);
          else quantise_(to, from, {.count = numbers}, w_.scale[head * w_.scale_stride_head], Stores::kOrdinary);
          to += row_stride_;
          from += numbers * source_number_bytes_;
        }
      }
    }
  }

  void write_numbers(char* cache, const char* source, int64_t num_tokens) {
    for (int64_t head = 0; head < num_heads_; ++head) {
      const char* from = source + head * source_head_bytes_;
      prefetch(from + bytes_ahead(head, num_tokens), num_tokens, head_size_ * number_bytes_);
      (this->*write_)(cache + head * w_.cache_stride_head * number_bytes_, from, source_token_bytes_, num_tokens,
                      head_size_ * number_bytes_ / element_bytes_);
    }
  }

  // The same by way of codes_, of as many numbers of a head as it holds.
  void write_codes(char* cache, const char* source, int64_t num_tokens) {
    const int64_t max_numbers = kCodes / kMaxTokens;
    for (int64_t head = 0; head < num_heads_; ++head) {
      const int64_t ahead = bytes_ahead(head, num_tokens);
      for (int64_t first = 0; first < head_size_; first += max_numbers) {
        const int64_t numbers = head_size_ - first < max_numbers ? head_size_ - first : max_numbers;
        quantise_(codes_, source + head * source_head_bytes_ + first * source_number_bytes_,
                  {.count = numbers,
                   .num_rows = num_tokens,
                   .to_stride = numbers,
                   .from_stride = source_token_bytes_,
                   .ahead = ahead},
                  w_.scale[head * w_.scale_stride_head], Stores::kOrdinary);
        (this->*write_)(cache + head * w_.cache_stride_head + first / element_bytes_ * row_stride_, codes_, numbers,
                        num_tokens, numbers / element_bytes_);
      }
    }
  }

  int64_t bytes_ahead(int64_t head, int64_t num_tokens) const {
    return cpu::bytes_ahead(head, num_heads_, source_head_bytes_, num_tokens * source_token_bytes_);
  }

  // Into the second-level cache. GCC drops calls of a function that does nothing else, so it is none.
  [[gnu::always_inline]] void prefetch(const char* from, int64_t num_tokens, int64_t num_bytes) const {
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (int64_t at = 0; at < num_bytes; at += kLine) __builtin_prefetch(from + i * source_token_bytes_ + at, 0, 2);
    }
  }

  using Write = void (PackedWriter::*)(char* cache, const char* source, int64_t source_stride, int64_t num_tokens,
                                       int64_t num_rows);

  struct Bytes16 {
    uint64_t words[2];
  };

  static Write write_for(int64_t element_bytes) {
    switch (element_bytes) {
      case 1: return &PackedWriter::write_columns<uint8_t>;
      case 2: return &PackedWriter::write_columns<uint16_t>;
      case 4: return &PackedWriter::write_columns<uint32_t>;
      case 8: return &PackedWriter::write_columns<uint64_t>;
      case 16: return &PackedWriter::write_columns<Bytes16>;
      default: return nullptr;
    }
  }

  // Rows whose slots lie together.
  template <class Element>
  void write_columns(char* cache, const char* source, int64_t source_stride, int64_t num_tokens, int64_t num_rows) {
    constexpr int64_t kBytes = sizeof(Element), kTokens = 16 / kBytes, kRows = kTokens * kNumLanes;
    if (num_tokens < kTokens || num_rows < kRows) {
      const int64_t row_stride = row_stride_;  // for all that the compiler knows, a store may change a member
      for (int64_t i = 0; i < num_tokens; ++i, cache += kBytes, source += source_stride) {
#pragma GCC unroll 4
        for (int64_t row = 0; row < num_rows; ++row) {
          std::memcpy(cache + row * row_stride, source + row * kBytes, kBytes);
        }
      }
      return;
    }
    for (int64_t row = 0; row < num_rows; row += kRows) {
      const int64_t first = row < num_rows - kRows ? row : num_rows - kRows;  // the last rows may be written twice
      read_tile<Element>(source + first * kBytes, source_stride, num_tokens);
      write_tile<Element>(cache + first * row_stride_, num_tokens);
    }
  }

  // kRows rows: tile_[j * groups + group], lane l: row l * kTokens + j of the tokens from group * kTokens on.
  template <class Element>
  void read_tile(const char* source, int64_t source_stride, int64_t num_tokens) {
    using L = Lanes<Element>;
    constexpr int64_t kTokens = L::kPerLane;
    const int64_t groups = (num_tokens + kTokens - 1) / kTokens;
    for (int64_t group = 0; group < groups; ++group) {
      const char* from[kTokens];
      for (int64_t i = 0; i < kTokens; ++i) {
        const int64_t token = group * kTokens + i;
        from[i] = source + (token < num_tokens ? token : num_tokens - 1) * source_stride;
      }
      typename L::Vector vectors[kTokens];
      L::transpose(vectors, from);
      for (int64_t j = 0; j < kTokens; ++j) std::memcpy(&tile_[j * groups + group], &vectors[j], sizeof(Bytes));
    }
  }

  template <class Element>
  void write_tile(char* cache, int64_t num_tokens) {
    constexpr int64_t kBytes = sizeof(Element), kTokens = 16 / kBytes;
    const int64_t groups = (num_tokens + kTokens - 1) / kTokens;
    // The lanes of a row lie together; if rows follow each other, those of kTokens rows.
    const bool is_dense = num_tokens * kBytes == row_stride_;
    const int64_t pieces = is_dense ? 1 : kTokens, lanes = kTokens * groups / pieces;
    if (num_tokens % kTokens != 0 || lanes % kNumLanes != 0) {
      write_lanes<Element>(cache, num_tokens);
      return;
    }
    const int64_t strides = kTokens * row_stride_ | (is_dense ? 0 : row_stride_) | lanes * 16;
    const bool has_lines = ((reinterpret_cast<intptr_t>(cache) | strides) & (kLine - 1)) == 0;
    if (is_streaming_ && has_lines) write_vectors(cache, kTokens * row_stride_, pieces, lanes, stream);
    else write_vectors(cache, kTokens * row_stride_, pieces, lanes, store);
  }

  template <class Put>
  [[gnu::always_inline]] void write_vectors(char* cache, int64_t lane_stride, int64_t pieces, int64_t lanes,
                                            const Put& put) const {
    for (int64_t j = 0; j < pieces; ++j) {
      for (int64_t i = 0; i < lanes; i += kNumLanes) {
        OfLanes<kNumLanes>::Vector vectors[kNumLanes];
#pragma GCC unroll 4
        for (int k = 0; k < kNumLanes; ++k) {
          vectors[k] = std::bit_cast<OfLanes<kNumLanes>::Vector>(tile_[j * lanes + i + k]);
        }
        transpose_lanes<kNumLanes>(vectors);
#pragma GCC unroll 4
        for (int lane = 0; lane < kNumLanes; ++lane) {
          put(cache + lane * lane_stride + j * row_stride_ + i * 16, std::bit_cast<Bytes>(vectors[lane]));
        }
      }
    }
  }

  template <class Element>
  void write_lanes(char* cache, int64_t num_tokens) const {
    constexpr int64_t kBytes = sizeof(Element), kTokens = 16 / kBytes;
    const int64_t groups = (num_tokens + kTokens - 1) / kTokens;
    for (int64_t row = 0; row < kTokens * kNumLanes; ++row) {
      char* to = cache + row * row_stride_;
      const char* from = reinterpret_cast<const char*>(&tile_[row % kTokens * groups]) + row / kTokens * 16;
      for (int64_t token = 0; token < num_tokens; token += kTokens, to += 16, from += sizeof(Bytes)) {
        if (num_tokens - token >= kTokens) {
          std::memcpy(to, from, 16);
        } else {
          for (int64_t i = 0; i < (num_tokens - token) * kBytes; i += kBytes) std::memcpy(to + i, from + i, kBytes);
        }
      }
    }
  }

  const PackedWrite& w_;
  const int64_t num_heads_, head_size_, number_bytes_;
  const int64_t source_token_bytes_, source_head_bytes_, source_number_bytes_;
  const int64_t element_bytes_, slots_per_row_;
  const int64_t row_stride_, slot_stride_, group_stride_;  // in bytes
  const int64_t max_tokens_;  // at once: rows of whole cache lines, and few streams to read
  const bool is_streaming_;
  const Quantiser quantise_;
  const Write write_;
  alignas(64) Bytes tile_[kMaxTokens];
  alignas(64) char codes_[kCodes];
};

}  // namespace
}  // namespace multikv::cpu
