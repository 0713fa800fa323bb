#include "vec.h"

namespace multikv::cpu {
namespace {

using Quantise = void (*)(char* to, const char* from, int64_t count, float scale, Stores stores);

template <CacheFormat kFormat, class Input>
void quantise_bytes(char* to, const char* from, int64_t count, float scale, Stores stores) {
  quantise<kFormat>(reinterpret_cast<uint8_t*>(to), reinterpret_cast<const Input*>(from), count, scale, stores);
}

template <CacheFormat kFormat>
Quantise quantise_from(Float dtype) {
  switch (dtype) {
    case Float::kFloat32: return quantise_bytes<kFormat, float>;
    case Float::kFloat16: return quantise_bytes<kFormat, Half>;
    case Float::kBFloat16: break;
  }
  return quantise_bytes<kFormat, BFloat16>;
}

Quantise quantise_for(CacheFormat format, Float dtype) {
  switch (format) {
    case CacheFormat::kSame: return nullptr;
    case CacheFormat::kE5M2: return quantise_from<CacheFormat::kE5M2>(dtype);
    case CacheFormat::kE4M3FNUZ: return quantise_from<CacheFormat::kE4M3FNUZ>(dtype);
    case CacheFormat::kE5M2FNUZ: return quantise_from<CacheFormat::kE5M2FNUZ>(dtype);
    case CacheFormat::kE4M3FN: break;
  }
  return quantise_from<CacheFormat::kE4M3FN>(dtype);
}

// One of key and value, with what is the same for all its tokens.
struct Writer {
  const char* source;
  char* cache;
  const float* scale;
  int64_t scale_stride;
  int64_t num_rows, row_elements;  // heads that follow each other on both sides are one row
  int64_t source_token_bytes, source_row_bytes, source_element_bytes;
  int64_t cache_block_bytes, cache_slot_bytes, cache_row_bytes;
  Quantise quantise;
  Stores stores;

  void write(int64_t token, int64_t block, int64_t offset) const {
    const char* from = source + token * source_token_bytes;
    char* to = cache + block * cache_block_bytes + offset * cache_slot_bytes;
    for (int64_t row = 0; row < num_rows; ++row, from += source_row_bytes, to += cache_row_bytes) {
      if (quantise == nullptr) {
        copy(to, from, row_elements * source_element_bytes, stores);
      } else {
        quantise(to, from, row_elements, scale[row * scale_stride], stores);
      }
    }
  }
};

Writer make_writer(const CacheWrite& w, const ReshapeAndCacheFlashParams& p, Stores stores) {
  const int64_t from_bytes = num_bytes(p.dtype);
  const int64_t to_bytes = num_bytes(p.format, p.dtype);
  const bool one_row = w.source_stride_head == w.head_size && w.cache_stride_head == w.head_size &&
                       w.scale_stride_head == 0;
  return {
      .source = static_cast<const char*>(w.source),
      .cache = static_cast<char*>(w.cache),
      .scale = w.scale,
      .scale_stride = w.scale_stride_head,
      .num_rows = one_row ? 1 : p.num_heads,
      .row_elements = one_row ? p.num_heads * w.head_size : w.head_size,
      .source_token_bytes = w.source_stride_token * from_bytes,
      .source_row_bytes = w.source_stride_head * from_bytes,
      .source_element_bytes = from_bytes,
      .cache_block_bytes = w.cache_stride_block * to_bytes,
      .cache_slot_bytes = w.cache_stride_slot * to_bytes,
      .cache_row_bytes = w.cache_stride_head * to_bytes,
      .quantise = quantise_for(p.format, p.dtype),
      .stores = stores,
  };
}

}  // namespace

template <>
void reshape_and_cache_flash<kIsa>(const ReshapeAndCacheFlashParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  const Writer key = make_writer(p.key, p, stores);
  const Writer value = make_writer(p.value, p, stores);
  const auto block_size = static_cast<int64_t>(p.block_size.value);
  for (int64_t token = begin; token < end; ++token) {
    const int64_t slot = p.slot_mapping.at(token);
    if (slot < 0) continue;
    const int64_t block = slot / block_size;
    key.write(token, block, slot - block * block_size);
    value.write(token, block, slot - block * block_size);
  }
  finish(stores);
}

}  // namespace multikv::cpu
