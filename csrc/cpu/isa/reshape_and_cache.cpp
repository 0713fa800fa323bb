#include "cpu/isa/cache/packed_writer.h"
#include "cpu/isa/cache/slots.h"
#include "cpu/isa/codec/quantise.h"

namespace multikv::cpu {
namespace {

// One of key and value, with what is the same for all its tokens.
struct Writer {
  const char* source;
  char* cache;
  const float* scale;
  int64_t scale_stride;
  int64_t num_rows, row_elements;  // heads that follow each other on both sides are one row
  int64_t source_token_bytes, source_row_bytes, source_element_bytes;
  int64_t cache_block_bytes, cache_slot_bytes, cache_row_bytes;
  bool is_dense;  // tokens follow each other as well
  Quantiser quantise;
  Stores stores;

  // `count` tokens with neighbouring slots of a block.
  void write(int64_t token, int64_t count, int64_t block, int64_t offset) const {
    const char* from = source + token * source_token_bytes;
    char* to = cache + block * cache_block_bytes + offset * cache_slot_bytes;
    if (is_dense) {
      write_rows(to, from, {.count = count * row_elements}, 0);
      return;
    }
    for (int64_t row = 0; row < num_rows; ++row, from += source_row_bytes, to += cache_row_bytes) {
      const int64_t ahead = bytes_ahead(row, num_rows, source_row_bytes, count * source_token_bytes);
      write_rows(to, from,
                 {.count = row_elements,
                  .num_rows = count,
                  .to_stride = cache_slot_bytes,
                  .from_stride = source_token_bytes,
                  .ahead = ahead},
                 row);
    }
  }

  void write_rows(char* to, const char* from, const Matrix& rows, int64_t row) const {
    if (quantise) {
      quantise(to, from, rows, scale[row * scale_stride], stores);
      return;
    }
    for (int64_t i = 0; i < rows.num_rows; ++i, to += rows.to_stride, from += rows.from_stride) {
      copy(to, from, rows.count * source_element_bytes, stores, from + rows.ahead);
    }
  }
};

Writer make_writer(const CacheWrite& w, const ReshapeAndCacheFlashParams& p, Stores stores) {
  const int64_t from_bytes = num_bytes(p.dtype);
  const int64_t to_bytes = num_bytes(p.format, p.dtype);
  const bool one_row =
      w.source_stride_head == w.head_size && w.cache_stride_head == w.head_size && w.scale_stride_head == 0;
  const int64_t row_elements = one_row ? p.num_heads * w.head_size : w.head_size;
  return {
      .source = static_cast<const char*>(w.source),
      .cache = static_cast<char*>(w.cache),
      .scale = w.scale,
      .scale_stride = w.scale_stride_head,
      .num_rows = one_row ? 1 : p.num_heads,
      .row_elements = row_elements,
      .source_token_bytes = w.source_stride_token * from_bytes,
      .source_row_bytes = w.source_stride_head * from_bytes,
      .source_element_bytes = from_bytes,
      .cache_block_bytes = w.cache_stride_block * to_bytes,
      .cache_slot_bytes = w.cache_stride_slot * to_bytes,
      .cache_row_bytes = w.cache_stride_head * to_bytes,
      .is_dense = one_row && w.source_stride_token == row_elements && w.cache_stride_slot == row_elements,
      .quantise = {p.format,
                   p.dtype,
                   {w.scale, w.scale_stride_head, w.scale_stride_head == 0 ? 1 : p.num_heads,
                    p.slots.num_tokens * p.num_heads * w.head_size}},
      .stores = stores,
  };
}

}  // namespace

template <>
void reshape_and_cache_flash<kIsa>(const ReshapeAndCacheFlashParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  const Writer key = make_writer(p.key, p, stores);
  const Writer value = make_writer(p.value, p, stores);
  for_each_run(p.slots, begin, end, [&](int64_t token, int64_t count, int64_t block, int64_t offset) {
    key.write(token, count, block, offset);
    value.write(token, count, block, offset);
  });
  finish(stores);
}

template <>
void reshape_and_cache<kIsa>(const ReshapeAndCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  PackedWriter key(p, true, stores), value(p, false, stores);
  for_each_run(p.slots, begin, end, [&](int64_t token, int64_t count, int64_t block, int64_t offset) {
    key.write(token, count, block, offset);
    value.write(token, count, block, offset);
  });
  finish(stores);
}

}  // namespace multikv::cpu
