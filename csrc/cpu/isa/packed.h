// Writing a packed cache: rows of what neighbouring slots hold at one place of a head, so that a token is a column.
#pragma once

#include "line_writer.h"
#include "quantise.h"
#include "transpose.h"

namespace multikv::cpu {
namespace {

// One of key and value. What is called an element here is what lies together: vector_size numbers of a key, one of a value.
class PackedWriter {
 public:
  PackedWriter(const ReshapeAndCacheParams& p, bool is_key, Stores stores)
      : w_(is_key ? p.key : p.value),
        num_heads_(p.num_heads),
        number_bytes_(num_bytes(p.format, p.dtype)),
        source_number_bytes_(num_bytes(p.dtype)),
        element_numbers_(is_key ? static_cast<int64_t>(w_.vector_size.value) : 1),
        element_bytes_(element_numbers_ * number_bytes_),
        num_rows_(p.head_size / element_numbers_),
        slots_per_row_(static_cast<int64_t>((is_key ? p.slots.block_size : w_.vector_size).value)),
        row_stride_((is_key ? w_.cache_stride_vector : w_.cache_stride_row) * number_bytes_),
        slot_stride_((is_key ? w_.cache_stride_row : 1) * number_bytes_),
        group_stride_((is_key ? 0 : w_.cache_stride_vector) * number_bytes_),
        max_tokens_(is_key ? 16 : kLine / number_bytes_),
        quantise_(quantise_for(p.format, p.dtype,
                               {w_.scale, w_.scale_stride_head, w_.scale_stride_head == 0 ? 1 : num_heads_})),
        write_(slot_stride_ == element_bytes_ ? write_for(element_bytes_) : &PackedWriter::scatter),
        lines_(stores) {}

  // `count` tokens with neighbouring slots of a block.
  void write(int64_t token, int64_t count, int64_t block, int64_t offset) {
    while (count > 0) {
      const int64_t group = offset / slots_per_row_, column = offset - group * slots_per_row_;
      int64_t length = slots_per_row_ - column < count ? slots_per_row_ - column : count;
      length = length < max_tokens_ ? length : max_tokens_;
      for (int64_t head = 0; head < num_heads_; ++head) {
        char* cache = static_cast<char*>(w_.cache) + column * slot_stride_ + group * group_stride_ +
                      (block * w_.cache_stride_block + head * w_.cache_stride_head) * number_bytes_;
        const char* source = static_cast<const char*>(w_.source) +
                             (token * w_.source_stride_token + head * w_.source_stride_head) * source_number_bytes_;
        prefetch(source, head, length);
        write_head(cache, source, head, length);
      }
      token += length;
      offset += length;
      count -= length;
    }
  }

 private:
  static constexpr int64_t kLine = 64, kMaxTokens = 64, kCodesBytes = 16384, kTileBytes = 8192;

  // The tokens' numbers as they are stored, row by row of the cache.
  void write_head(char* cache, const char* source, int64_t head, int64_t num_tokens) {
    const int64_t stride = w_.source_stride_token * source_number_bytes_;
    if (quantise_ == nullptr) {
      (this->*write_)(cache, source, stride, num_tokens, num_rows_);
      return;
    }
    const float scale = w_.scale[head * w_.scale_stride_head];
    const int64_t rows_at_once = kCodesBytes / kMaxTokens / element_numbers_;
    if (rows_at_once == 0) {  // elements longer than the buffer's share go straight to the cache
      lines_.flush();
      for (int64_t i = 0; i < num_tokens * num_rows_; ++i) {
        const int64_t token = i / num_rows_, row = i - token * num_rows_;
        quantise_(cache + row * row_stride_ + token * slot_stride_,
                  source + token * stride + row * element_numbers_ * source_number_bytes_, element_numbers_, scale,
                  Stores::kOrdinary);
      }
      return;
    }
    for (int64_t first = 0; first < num_rows_; first += rows_at_once) {
      const int64_t rows = num_rows_ - first < rows_at_once ? num_rows_ - first : rows_at_once;
      const int64_t numbers = rows * element_numbers_;
      for (int64_t i = 0; i < num_tokens; ++i) {
        quantise_(codes_ + i * numbers, source + first * element_numbers_ * source_number_bytes_ + i * stride, numbers,
                  scale, Stores::kOrdinary);
      }
      (this->*write_)(cache + first * row_stride_, codes_, numbers, num_tokens, rows);
    }
  }

  // What is read some heads later, of these tokens or of the next: so many streams are more than the processor foresees.
  // GCC drops calls of a function that does nothing else, so it is none.
  [[gnu::always_inline]] void prefetch(const char* source, int64_t head, int64_t num_tokens) const {
    const int64_t ahead = num_heads_ < 8 ? num_heads_ : 8;
    const int64_t token_bytes = w_.source_stride_token * source_number_bytes_;
    const int64_t head_bytes = num_rows_ * element_numbers_ * source_number_bytes_;
    source += ahead * w_.source_stride_head * source_number_bytes_;
    if (head + ahead >= num_heads_) {
      source += num_tokens * token_bytes - num_heads_ * w_.source_stride_head * source_number_bytes_;
    }
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (int64_t at = 0; at < head_bytes; at += 64) __builtin_prefetch(source + i * token_bytes + at, 0, 2);
    }
  }

  using Write = void (PackedWriter::*)(char* cache, const char* source, int64_t source_stride, int64_t num_tokens,
                                       int64_t num_rows);

  static Write write_for(int64_t element_bytes) {
    switch (element_bytes) {
      case 1: return &PackedWriter::write_columns<uint8_t>;
      case 2: return &PackedWriter::write_columns<uint16_t>;
      case 4: return &PackedWriter::write_columns<uint32_t>;
      case 8: return &PackedWriter::write_columns<uint64_t>;
      case 16: return &PackedWriter::write_columns<Bytes16>;
      default: return &PackedWriter::scatter;
    }
  }

  // Any layout, element by element.
  void scatter(char* cache, const char* source, int64_t source_stride, int64_t num_tokens, int64_t num_rows) {
    lines_.flush();
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (int64_t row = 0; row < num_rows; ++row) {
        std::memcpy(cache + row * row_stride_ + i * slot_stride_, source + i * source_stride + row * element_bytes_,
                    element_bytes_);
      }
    }
  }

  struct Bytes16 { uint64_t words[2]; };

  template <class Element>
  void write_columns(char* cache, const char* source, int64_t source_stride, int64_t num_tokens, int64_t num_rows) {
    constexpr int64_t kBytes = sizeof(Element), kTokens = 16 / kBytes;
    constexpr int64_t kRows = kBytes == 16 ? 1 : static_cast<int64_t>(sizeof(Bytes)) / kBytes;
    if (num_tokens < kTokens || num_rows < kRows) {
      lines_.flush();
      for (int64_t i = 0; i < num_tokens; ++i) {
        for (int64_t row = 0; row < num_rows; ++row) {
          std::memcpy(cache + row * row_stride_ + i * kBytes, source + i * source_stride + row * kBytes, kBytes);
        }
      }
      return;
    }
    const int64_t tile_tokens = (num_tokens + kTokens - 1) / kTokens * kTokens;
    const int64_t tile_rows = kTileBytes / (tile_tokens * kBytes) / kRows * kRows;
    for (int64_t first = 0; first < num_rows;) {
      int64_t rows = num_rows - first < tile_rows ? num_rows - first : tile_rows;
      if (rows < kRows) {  // too few for a vector: some rows are written again
        rows = kRows;
        first = num_rows - rows;
      }
      fill_tile<Element>(source + first * kBytes, source_stride, num_tokens, tile_tokens, rows);
      write_tile(cache + first * row_stride_, num_tokens * kBytes, tile_tokens * kBytes, rows);
      first += rows;
    }
  }

  // tile_[row, token] = source[token, row]. Columns past num_tokens hold what the last token has.
  template <class Element>
  void fill_tile(const char* source, int64_t source_stride, int64_t num_tokens, int64_t tile_tokens, int64_t num_rows) {
    constexpr int64_t kBytes = sizeof(Element), kTokens = 16 / kBytes;
    for (int64_t token = 0; token < tile_tokens; token += kTokens) {
      char* tile = tile_ + token * kBytes;
      if constexpr (kBytes == 16) {
        const char* from = source + token * source_stride;
        for (int64_t row = 0; row < num_rows; ++row) std::memcpy(tile + row * tile_tokens * kBytes, from + row * kBytes, kBytes);
      } else {
        constexpr int64_t kRows = sizeof(Bytes) / kBytes;
        for (int64_t row = 0; row < num_rows; row += kRows) {
          const int64_t at = row < num_rows - kRows ? row : num_rows - kRows;
          const char* from[kTokens];
          for (int64_t i = 0; i < kTokens; ++i) {
            from[i] = source + (token + i < num_tokens ? token + i : num_tokens - 1) * source_stride + at * kBytes;
          }
          transpose_tile<Element>(tile + at * tile_tokens * kBytes, tile_tokens * kBytes, from);
        }
      }
    }
  }

  void write_tile(char* cache, int64_t row_bytes, int64_t tile_stride, int64_t num_rows) {
    if (row_bytes == row_stride_ && row_bytes == tile_stride) {
      row_bytes *= num_rows;
      num_rows = 1;
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      lines_.copy_piece(cache + row * row_stride_, tile_ + row * tile_stride, row_bytes);
    }
  }

  const PackedWrite& w_;
  const int64_t num_heads_, number_bytes_, source_number_bytes_;
  const int64_t element_numbers_, element_bytes_, num_rows_, slots_per_row_;
  const int64_t row_stride_, slot_stride_, group_stride_;  // in bytes
  const int64_t max_tokens_;  // at once: rows of whole cache lines, and few streams to read
  const Quantise quantise_;
  const Write write_;
  LineWriter lines_;
  alignas(64) char tile_[kTileBytes];
  alignas(64) char codes_[kCodesBytes];
};

}  // namespace
}  // namespace multikv::cpu
