#include "cpu/isa/cache/sequences.h"
#include "cpu/isa/cache/strided.h"
#include "cpu/isa/codec/dequantise.h"

namespace multikv::cpu {
namespace {

const char* entry_of(const CpGatherCacheParams& p, int64_t block, int64_t offset) {
  return static_cast<const char*>(p.src_cache) + block * p.src_stride_block_bytes + offset * p.src_stride_slot_bytes;
}

void copy_entry(const Rows& entry, char* to, const char* from, Stores stores) {
  RowWalker place(entry, 0);
  for (int64_t row = 0; row < entry.num_rows; ++row, place.next()) {
    copy(to + place.dst(), from + place.src(), entry.row_size, stores);
  }
}

// Entries as fp8_ds_mla has them, to bfloat16.
template <CacheFormat kFormat>
void upconvert_entry(BFloat16* to, const char* entry, Stores stores) {
  using Entry = DsMlaEntry;
  float scales[Entry::kLatentSize / Entry::kTileSize];
  std::memcpy(scales, entry + Entry::kScalesAt, sizeof scales);
  const auto* codes = reinterpret_cast<const uint8_t*>(entry);
  for (int i = 0; i < Entry::kLatentSize; i += Entry::kTileSize) {
    dequantise<kFormat>(to + i, codes + i, Entry::kTileSize, scales[i / Entry::kTileSize], stores);
  }
  copy(reinterpret_cast<char*>(to + Entry::kLatentSize), entry + Entry::kRopeAt, Entry::kRopeSize * 2, stores);
}

// Where the entry of a logical block's slot lies; nullptr: nowhere.
const char* find_entry(const CpGatherAndUpconvertFp8KvCacheParams& p, int64_t block, int64_t offset) {
  if (p.host_row_ids.data != nullptr) {
    const auto block_size = static_cast<int64_t>(p.sequences.block_size.value);
    const int64_t row = block * block_size + offset;
    const int64_t device_row = p.device_row_ids.at(row);
    if (device_row < 0) {
      const int64_t host_row = p.host_row_ids.at(row);
      return host_row < 0 ? nullptr : static_cast<const char*>(p.host_cache) + host_row * p.host_stride_row_bytes;
    }
    block = device_row / block_size;
    offset = device_row - block * block_size;
  }
  return static_cast<const char*>(p.src_cache) + block * p.src_stride_block_bytes + offset * p.src_stride_slot_bytes;
}

template <CacheFormat kFormat>
void upconvert(const CpGatherAndUpconvertFp8KvCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  constexpr int64_t kRowsAhead = 8;
  for_each_run(p.sequences, begin, end, [&](const Run& run, const Run*) {
    for (int64_t i = 0; i < run.count; ++i) {
      if (i + kRowsAhead < run.count) {
        const char* ahead = find_entry(p, run.block, run.offset + i + kRowsAhead);
        if (ahead != nullptr) Ahead(ahead, ahead).fetch(0, DsMlaEntry::kBytes);
      }
      const char* entry = find_entry(p, run.block, run.offset + i);
      if (entry == nullptr) continue;
      upconvert_entry<kFormat>(static_cast<BFloat16*>(p.dst) + (run.row + i) * p.dst_stride_token, entry, stores);
    }
  });
}

// Rows of as many bytes, dense or not. `next`: what will be read after them.
struct ByteRows {
  char* dst;
  int64_t dst_stride, src_stride, row_bytes;

  void copy_to(int64_t row, int64_t count, const char* from, Stores stores, const char* next) const {
    char* to = dst + row * dst_stride;
    if (src_stride == row_bytes && dst_stride == row_bytes) {
      copy(to, from, count * row_bytes, stores, next);
      return;
    }
    for (int64_t i = 0; i < count; ++i) copy(to + i * dst_stride, from + i * src_stride, row_bytes, stores);
  }
};

}  // namespace

template <>
void cp_gather_cache<kIsa>(const CpGatherCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  const ByteRows rows{static_cast<char*>(p.dst), p.dst_stride_token_bytes, p.src_stride_slot_bytes, p.entry.row_size};
  for_each_run(p.sequences, begin, end, [&](const Run& run, const Run* next) {
    const char* from = entry_of(p, run.block, run.offset);
    if (p.entry.num_dims == 0) {
      rows.copy_to(run.row, run.count, from, stores, next ? entry_of(p, next->block, next->offset) : nullptr);
      return;
    }
    char* to = static_cast<char*>(p.dst) + run.row * p.dst_stride_token_bytes;
    for (int64_t i = 0; i < run.count; ++i) {
      copy_entry(p.entry, to + i * p.dst_stride_token_bytes, from + i * p.src_stride_slot_bytes, stores);
    }
  });
  finish(stores);
}

template <>
void gather_and_maybe_dequant_cache<kIsa>(const GatherAndMaybeDequantCacheParams& p, int64_t begin, int64_t end,
                                          Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  const CpGatherCacheParams& g = p.gather;
  const Dequantise dequantise = dequantise_for(p.format, p.dtype);
  const float scale = *p.scale;
  const int64_t elements = g.entry.row_size;
  const bool is_dense =
      g.src_stride_slot_bytes == elements && g.dst_stride_token_bytes == elements * num_bytes(p.dtype);
  for_each_run(g.sequences, begin, end, [&](const Run& run, const Run* next) {
    const char* from = entry_of(g, run.block, run.offset);
    char* to = static_cast<char*>(g.dst) + run.row * g.dst_stride_token_bytes;
    if (is_dense) {
      dequantise(to, from, run.count * elements, scale, stores,
                 next ? entry_of(g, next->block, next->offset) : nullptr);
      return;
    }
    for (int64_t i = 0; i < run.count; ++i) {
      dequantise(to + i * g.dst_stride_token_bytes, from + i * g.src_stride_slot_bytes, elements, scale, stores,
                 nullptr);
    }
  });
  finish(stores);
}

template <>
void cp_gather_and_upconvert_fp8_kv_cache<kIsa>(const CpGatherAndUpconvertFp8KvCacheParams& p, int64_t begin,
                                                int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  if (p.format == CacheFormat::kE4M3FNUZ) upconvert<CacheFormat::kE4M3FNUZ>(p, begin, end, stores);
  else upconvert<CacheFormat::kE4M3FN>(p, begin, end, stores);
  finish(stores);
}

template <>
void cp_gather_indexer_k_quant_cache<kIsa>(const CpGatherIndexerKQuantCacheParams& p, int64_t begin, int64_t end,
                                           Stores stores) {
  const int64_t scales_at = static_cast<int64_t>(p.sequences.block_size.value) * p.k_bytes;
  const ByteRows k{static_cast<char*>(p.dst_k), p.dst_k_stride_token_bytes, p.k_bytes, p.k_bytes};
  const ByteRows scales{static_cast<char*>(p.dst_scale), p.dst_scale_stride_token_bytes, p.scale_bytes, p.scale_bytes};
  const auto block = [&](const Run& run) {
    return static_cast<const char*>(p.kv_cache) + run.block * p.kv_cache_stride_block_bytes;
  };
  for_each_run(p.sequences, begin, end, [&](const Run& run, const Run* next) {
    const char* next_k = next ? block(*next) + next->offset * p.k_bytes : nullptr;
    const char* next_scales = next ? block(*next) + scales_at + next->offset * p.scale_bytes : nullptr;
    k.copy_to(run.row, run.count, block(run) + run.offset * p.k_bytes, stores, next_k);
    // So few bytes that lines are not whole: not past the caches.
    scales.copy_to(run.row, run.count, block(run) + scales_at + run.offset * p.scale_bytes, Stores::kOrdinary,
                   next_scales);
  });
  finish(stores);
}

}  // namespace multikv::cpu
