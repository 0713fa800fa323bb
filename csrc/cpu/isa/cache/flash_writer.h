// Writes keys or values to a cache of the flash layout.
#pragma once

#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/codec/quantise.h"
#include "params/reshape_and_cache_params.h"

namespace multikv::cpu {
namespace {

// Writes keys or values to a cache [blocks, block_size, heads, head_size]. Heads that are contiguous on both sides, and
// share a scale, are one row.
class FlashWriter {
 public:
  FlashWriter(const ReshapeAndCacheFlashParams& p, const FlashWrite& write, Stores stores)
      : source_(write.source), cache_(write.cache), source_element_bytes_(num_bytes(p.dtype)),
        is_one_row_(write.source.stride_head_bytes == write.head_size * source_element_bytes_ &&
                    write.cache.stride_head_bytes == p.codec().num_bytes(write.head_size) &&
                    write.cache.scale_stride_head == 0),
        num_rows_(is_one_row_ ? 1 : p.num_heads),
        row_elements_(is_one_row_ ? p.num_heads * write.head_size : write.head_size),
        is_dense_(is_one_row_ && source_.stride_token_bytes == row_elements_ * source_element_bytes_ &&
                  cache_.stride_slot_bytes == p.codec().num_bytes(row_elements_)),
        quantise_(p.codec().element, p.dtype,
                  {.data = cache_.scale,
                   .stride = cache_.scale_stride_head,
                   .num_scales = cache_.scale_stride_head == 0 ? 1 : p.num_heads,
                   .num_elements = p.slots.num_tokens * p.num_heads * write.head_size}),
        is_in_token_order_(!is_one_row_ && quantise_ && stores == Stores::kStreaming && cache_.scale_stride_head == 0 &&
                           (cache_.alignment_bits() | row_elements_).widest(kCacheLine) == kCacheLine),
        stores_(stores) {}

  void write(const TokenRun& run) const {
    const char* from = source_.head(run.token, 0);
    char* to = cache_.head(run.at, 0);
    if (is_dense_) {
      write_rows(to, from, {.count = run.count * row_elements_}, 0);
      return;
    }
    if (is_in_token_order_) {
      write_in_token_order(to, from, run.count);
      return;
    }
    const int64_t tokens_bytes = run.count * source_.stride_token_bytes;
    for (int64_t row = 0; row < num_rows_; ++row) {
      write_rows(to, from,
                 {.count = row_elements_,
                  .num_rows = run.count,
                  .to_stride = cache_.stride_slot_bytes,
                  .from_stride = source_.stride_token_bytes,
                  .ahead = bytes_ahead(row, num_rows_, source_.stride_head_bytes, tokens_bytes)},
                 row);
      from += source_.stride_head_bytes;
      to += cache_.stride_head_bytes;
    }
  }

 private:
  void write_in_token_order(char* to, const char* from, int64_t num_tokens) const {
    for (int64_t token = 0; token < num_tokens; ++token) {
      write_rows(to, from,
                 {.count = row_elements_,
                  .num_rows = num_rows_,
                  .to_stride = cache_.stride_head_bytes,
                  .from_stride = source_.stride_head_bytes,
                  .ahead = source_.stride_token_bytes},
                 0);
      from += source_.stride_token_bytes;
      to += cache_.stride_slot_bytes;
    }
  }

  void write_rows(char* to, const char* from, const Matrix& rows, int64_t head) const {
    if (quantise_) {
      quantise_(to, from, rows, *cache_.scale_of(head), stores_);
      return;
    }
    for (int64_t i = 0; i < rows.num_rows; ++i, to += rows.to_stride, from += rows.from_stride) {
      // If rows.ahead is 0, copy() prefetches the row itself. Passing nullptr as `next` instead would not be faster.
      copy(to, from, rows.count * source_element_bytes_, stores_, from + rows.ahead);
    }
  }

  const TokenHeads& source_;
  const FlashCache& cache_;
  const int64_t source_element_bytes_;
  const bool is_one_row_;
  const int64_t num_rows_, row_elements_;
  const bool is_dense_;  // rows of neighbouring tokens are contiguous as well
  const Quantiser quantise_;
  // All heads of one token are written before those of the next token, so that the source is read in order. Each head's
  // codes are whole cache lines, so the order of the streaming stores does not matter.
  const bool is_in_token_order_;
  const Stores stores_;
};

}  // namespace
}  // namespace multikv::cpu
