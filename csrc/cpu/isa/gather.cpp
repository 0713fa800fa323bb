#include "cpu/isa/cache/byte_rows.h"
#include "cpu/isa/cache/gather_heads.h"
#include "cpu/isa/cache/strided.h"
#include "cpu/isa/codec/dequantise.h"
#include "params/gather_params.h"

namespace multikv::cpu {
namespace {

void copy_entry(const StridedRows& entry, char* to, const char* from, Stores stores) {
  RowWalker offsets(entry, 0);
  for (int64_t row = 0; row < entry.num_rows; ++row, offsets.next()) {
    copy(to + offsets.dst(), from + offsets.src(), entry.row_size, stores);
  }
}

// Converts one fp8_ds_mla entry (core/cache_view.h) to bfloat16.
template <Element kElement>
void upconvert_entry(BFloat16* to, const char* entry, Stores stores) {
  constexpr int kLatentSize = DsMlaEntry::kLatentSize, kTileSize = DsMlaEntry::kTileSize;
  float scales[kLatentSize / kTileSize];
  std::memcpy(scales, entry + DsMlaEntry::kScalesAt, sizeof scales);
  const auto* codes = reinterpret_cast<const uint8_t*>(entry);
  for (int i = 0; i < kLatentSize; i += kTileSize) {
    dequantise<kElement>(to + i, codes + i, kTileSize, scales[i / kTileSize], stores);
  }
  copy(reinterpret_cast<char*>(to + kLatentSize), entry + DsMlaEntry::kRopeAt, DsMlaEntry::kRopeSize * 2, stores);
}

// Returns the entry of a logical block and an offset in it. If the row ids are not given, logical blocks are blocks of
// the cache. If they are given, they say whether the entry is in the cache or in host_cache; the function returns
// nullptr if they name no row.
const char* find_entry(const CpGatherAndUpconvertFp8KvCacheParams& p, BlockOffset at) {
  if (p.host_row_ids.is_given()) {
    const int64_t block_size = p.sequences.blocks.block_size.signed_value();
    const int64_t slot = at.block * block_size + at.offset;
    const int64_t device_row = p.device_row_ids.at(slot);
    if (device_row < 0) {
      const int64_t host_row = p.host_row_ids.at(slot);
      return host_row < 0 ? nullptr : p.host_cache + host_row * p.host_stride_row_bytes;
    }
    at.block = device_row / block_size;
    at.offset = device_row - at.block * block_size;
  }
  return p.cache.entry(at);
}

template <Element kElement>
void upconvert_runs(const CpGatherAndUpconvertFp8KvCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  constexpr int64_t kEntriesAhead = 8;
  for_each_run(p.sequences, begin, end, [&](const GatherRun& run, const GatherRun*) {
    const auto at = [&](int64_t i) { return BlockOffset{run.at.block, run.at.offset + i}; };
    for (int64_t i = 0; i < run.count; ++i) {
      if (i + kEntriesAhead < run.count) {
        const char* ahead = find_entry(p, at(i + kEntriesAhead));
        if (ahead != nullptr) NextInput(ahead, ahead).prefetch(0, DsMlaEntry::kBytes);
      }
      const char* entry = find_entry(p, at(i));
      if (entry == nullptr) continue;
      upconvert_entry<kElement>(reinterpret_cast<BFloat16*>(p.dst.row(run.row + i)), entry, stores);
    }
  });
}

}  // namespace

template <>
void run<kIsa>(const CpGatherCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  const ByteRows rows{p.dst, p.cache.stride_slot_bytes, p.entry.row_size};
  for_each_run(p.sequences, begin, end, [&](const GatherRun& run, const GatherRun* next) {
    const char* from = p.cache.entry(run.at);
    if (p.entry.num_dims == 0) {
      rows.copy_from(from, run.row, run.count, stores, next ? p.cache.entry(next->at) : nullptr);
      return;
    }
    for (int64_t i = 0; i < run.count; ++i) {
      copy_entry(p.entry, p.dst.row(run.row + i), from + i * p.cache.stride_slot_bytes, stores);
    }
  });
  finish(stores);
}

template <>
void run<kIsa>(const GatherAndMaybeDequantCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  HeadGatherer entries(p.entry, p.dtype, stores);
  for_each_run(p.sequences, begin, end,
               [&](const GatherRun& run, const GatherRun* next) { entries.gather(run, next); });
  finish(stores);
}

template <>
void run<kIsa>(const GatherKvCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  HeadGatherer keys(p.key, p.dtype, stores), values(p.value, p.dtype, stores);
  for_each_run(p.sequences, begin, end, [&](const GatherRun& run, const GatherRun* next) {
    keys.gather(run, next);
    values.gather(run, next);
  });
  finish(stores);
}

template <>
void run<kIsa>(const CpGatherAndUpconvertFp8KvCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_e4m3(p.cache.codec.element, [&]<Element kElement>() { upconvert_runs<kElement>(p, begin, end, stores); });
  finish(stores);
}

}  // namespace multikv::cpu
