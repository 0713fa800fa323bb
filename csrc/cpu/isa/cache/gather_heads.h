// Copies or dequantises the heads of runs of a gather.
#pragma once

#include "cpu/isa/cache/gather_runs.h"
#include "cpu/isa/cache/strip_reader.h"
#include "cpu/isa/codec/dequantise.h"
#include "cpu/isa/simd/copy.h"
#include "params/gather_params.h"

namespace multikv::cpu {
namespace {

class HeadGatherer {
 public:
  HeadGatherer(const HeadGather& p, Float dtype, Stores stores)
      : p_(p), cache_(p.cache),
        dequantise_(p.cache.codec.is_float() ? nullptr : dequantise_for(cache_.codec.element, dtype)),
        element_bytes_(cache_.codec.num_bytes(1)), dst_element_bytes_(num_bytes(dtype)), stores_(stores),
        is_dense_(p.num_heads == 1 && cache_.stride_row_bytes == p.head_size * element_bytes_ &&
                  p.dst.stride_token_bytes == p.head_size * dst_element_bytes_),
        is_head_major_(cache_.stride_head_bytes > cache_.stride_row_bytes || cache_.scale_stride_head != 0),
        strips_(p.packs_slots ? strips_of_values(cache_) : strips_of_keys(cache_)), read_strips_(strips_) {}

  // `next` is the run that is gathered after this one, or nullptr.
  void gather(const GatherRun& run, const GatherRun* next) {
    if (p_.packs_slots || cache_.vector_size.signed_value() != p_.head_size) gather_strips(run, next);
    else gather_heads(run, next);
  }

 private:
  static constexpr int64_t kBufferBytes = 16384, kTokens = 16;
  static constexpr int64_t kRowBytes = kBufferBytes / kTokens;  // of a token in the buffer

  char* cache_row(BlockOffset at) const { return cache_.block(at.block) + at.offset * cache_.stride_row_bytes; }
  float scale_of(int64_t head) const { return dequantise_ == nullptr ? 1.0f : *cache_.scale_of(head); }

  void convert(char* to, const char* from, const Matrix& rows, float scale) const {
    if (dequantise_ != nullptr) {
      dequantise_(to, from, rows, scale, stores_);
      return;
    }
    for (int64_t i = 0; i < rows.num_rows; ++i, to += rows.to_stride, from += rows.from_stride) {
      // If rows.ahead is 0, copy() prefetches the row itself. Passing nullptr as `next` instead would not be faster.
      copy(to, from, rows.count * element_bytes_, stores_, from + rows.ahead);
    }
  }

  // Gathers heads that are contiguous in the cache, in the order in which they lie there. Heads with scales of their
  // own are gathered one after the other.
  void gather_heads(const GatherRun& run, const GatherRun* next) const {
    const char* from = cache_row(run.at);
    const int64_t to_next_run = next == nullptr ? 0 : cache_row(next->at) - from;
    if (is_dense_) {
      convert(p_.dst.row(run.row), from, {.count = run.count * p_.head_size, .ahead = to_next_run}, scale_of(0));
    } else if (is_head_major_) {
      for (int64_t head = 0; head < p_.num_heads; ++head, from += cache_.stride_head_bytes) {
        const bool is_last = head + 1 == p_.num_heads;
        convert(p_.dst.head(run.row, head), from,
                {.count = p_.head_size,
                 .num_rows = run.count,
                 .to_stride = p_.dst.stride_token_bytes,
                 .from_stride = cache_.stride_row_bytes,
                 .ahead = is_last ? to_next_run - head * cache_.stride_head_bytes : cache_.stride_head_bytes},
                scale_of(head));
      }
    } else {
      for (int64_t i = 0; i < run.count; ++i, from += cache_.stride_row_bytes) {
        convert(p_.dst.row(run.row + i), from,
                {.count = p_.head_size,
                 .num_rows = p_.num_heads,
                 .to_stride = p_.dst.stride_head_bytes,
                 .from_stride = cache_.stride_head_bytes,
                 .ahead = to_next_run},
                scale_of(0));
      }
    }
  }

  // Returns the first unit of head 0 of a slot of a packed cache.
  const char* strips_at(BlockOffset at) const {
    const int64_t group = at.offset / strips_.slots_per_strip, column = at.offset - group * strips_.slots_per_strip;
    return cache_.block(at.block) + group * strips_.group_stride_bytes + column * strips_.slot_stride_bytes;
  }

  // Gathers heads of a packed cache, up to kTokens tokens at a time.
  void gather_strips(const GatherRun& run, const GatherRun* next) {
    for (int64_t i = 0, count = 0; i < run.count; i += count) {
      const BlockOffset at = {run.at.block, run.at.offset + i};
      const int64_t in_strip = strips_.slots_per_strip - at.offset % strips_.slots_per_strip, left = run.count - i;
      count = in_strip < left ? in_strip : left;
      count = count < kTokens ? count : kTokens;
      const char* from = strips_at(at);
      const char* after = from;
      if (count < left) after = strips_at({at.block, at.offset + count});
      else if (next != nullptr) after = strips_at(next->at);
      for (int64_t head = 0; head < p_.num_heads; ++head) {
        gather_head(run.row + i, head, count,
                    {from + head * cache_.stride_head_bytes,
                     bytes_ahead(head, p_.num_heads, cache_.stride_head_bytes, after - from)});
      }
    }
  }

  // Transposes pieces of a head of a packed cache into the buffer, and then converts them. If a piece is a single unit,
  // it needs no transposition.
  void gather_head(int64_t row, int64_t head, int64_t num_tokens, const StripSource& from) {
    const int64_t unit_bytes = strips_.unit_bytes, unit_elements = unit_bytes / element_bytes_;
    const int64_t num_units = p_.head_size / unit_elements, most_units = kRowBytes / unit_bytes;
    const float scale = scale_of(head);
    for (int64_t first = 0, units = 0; first < num_units; first += units) {
      units = num_units - first < most_units ? num_units - first : most_units;
      units = units > 1 ? units : 1;
      const char* source = from.data + first * strips_.strip_stride_bytes;
      Matrix rows = {.count = units * unit_elements,
                     .num_rows = num_tokens,
                     .to_stride = p_.dst.stride_token_bytes,
                     .from_stride = strips_.slot_stride_bytes};
      if (units > 1) {
        rows.from_stride = units * unit_bytes;
        read_strips_({num_tokens, units, buffer_, rows.from_stride}, {source, from.ahead_bytes});
        source = buffer_;
      }
      convert(p_.dst.head(row, head) + first * unit_elements * dst_element_bytes_, source, rows, scale);
    }
  }

  const HeadGather& p_;
  const PackedCache& cache_;
  const Dequantise dequantise_;  // nullptr: the format is a float format, whose elements are copied
  const int64_t element_bytes_, dst_element_bytes_;
  const Stores stores_;
  const bool is_dense_;  // neighbouring slots of a run are contiguous on both sides
  // Heads are gathered one after the other, and not slots, because each head has its own scale, or because the slots of
  // a head are nearer to each other than the heads of a slot.
  const bool is_head_major_;
  const PackedStrips strips_;
  const StripReader read_strips_;
  alignas(64) char buffer_[kBufferBytes];
};

}  // namespace
}  // namespace multikv::cpu
