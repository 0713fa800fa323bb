// Writes keys or values to a packed cache.
#pragma once

#include "cpu/isa/cache/packed_strips.h"
#include "cpu/isa/cache/strip_writer.h"
#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/codec/quantise.h"

namespace multikv::cpu {
namespace {

class PackedWriter {
 public:
  template <class Write>
    requires(std::same_as<Write, PackedKeyWrite> || std::same_as<Write, PackedValueWrite>)
  PackedWriter(const ReshapeAndCacheParams& p, const Write& write, Stores stores)
      : source_(write.source), cache_(write.cache), strips_(strips_of(write.cache)), num_heads_(p.num_heads),
        head_size_(p.head_size), source_element_bytes_(num_bytes(p.dtype)),
        cache_element_bytes_(cache_.codec.num_bytes(1)),
        quantise_(cache_.codec.element, p.dtype,
                  {.data = cache_.scale,
                   .stride = cache_.scale_stride_head,
                   .num_scales = cache_.scale_stride_head == 0 ? 1 : num_heads_,
                   .num_elements = p.slots.num_tokens * num_heads_ * head_size_}),
        write_strips_(strips_, stores) {}

  void write(const TokenRun& run) {
    int64_t token = run.token, offset = run.at.offset;
    for (int64_t left = run.count; left > 0;) {
      const int64_t group = offset / strips_.slots_per_strip, column = offset - group * strips_.slots_per_strip;
      int64_t count = strips_.slots_per_strip - column < left ? strips_.slots_per_strip - column : left;
      count = count < strips_.max_tokens ? count : strips_.max_tokens;
      char* cache =
          cache_.block(run.at.block) + group * strips_.group_stride_bytes + column * strips_.slot_stride_bytes;
      const char* source = source_.head(token, 0);
      if (!write_strips_) write_unit_by_unit(cache, source, count);
      else if (!quantise_) write_floats(cache, source, count);
      else write_codes(cache, source, count);
      token += count;
      offset += count;
      left -= count;
    }
  }

 private:
  static constexpr int64_t kCodesBytes = 16384;

  // Writes the units one by one, which is slow but works for every layout.
  void write_unit_by_unit(char* cache, const char* source, int64_t num_tokens) const {
    const int64_t unit_elements = strips_.unit_bytes / cache_element_bytes_;
    for (int64_t i = 0; i < num_tokens; ++i) {
      for (int64_t head = 0; head < num_heads_; ++head) {
        char* to = cache + i * strips_.slot_stride_bytes + head * cache_.stride_head_bytes;
        const char* from = source + i * source_.stride_token_bytes + head * source_.stride_head_bytes;
        for (int64_t element = 0; element < head_size_; element += unit_elements) {
          if (!quantise_) copy(to, from, strips_.unit_bytes, Stores::kOrdinary);
          else quantise_(to, from, {.count = unit_elements}, *cache_.scale_of(head), Stores::kOrdinary);
          to += strips_.strip_stride_bytes;
          from += unit_elements * source_element_bytes_;
        }
      }
    }
  }

  void write_floats(char* cache, const char* source, int64_t num_tokens) {
    const int64_t head_bytes = head_size_ * cache_element_bytes_;
    for (int64_t head = 0; head < num_heads_; ++head) {
      const char* from = source + head * source_.stride_head_bytes;
      prefetch_heads(from + bytes_ahead(head, num_tokens), num_tokens, head_bytes);
      write_strips_(cache + head * cache_.stride_head_bytes, from, source_.stride_token_bytes, num_tokens,
                    head_bytes / strips_.unit_bytes);
    }
  }

  // Quantises up to kMaxElements elements of a head of each token into codes_, writes codes_ to the strips, and goes on
  // with the next elements.
  void write_codes(char* cache, const char* source, int64_t num_tokens) {
    constexpr int64_t kMaxElements = kCodesBytes / StripWriter::kMaxTokens;
    for (int64_t head = 0; head < num_heads_; ++head) {
      const int64_t ahead = bytes_ahead(head, num_tokens);
      for (int64_t first = 0; first < head_size_; first += kMaxElements) {
        const int64_t count = head_size_ - first < kMaxElements ? head_size_ - first : kMaxElements;
        quantise_(codes_, source + head * source_.stride_head_bytes + first * source_element_bytes_,
                  {.count = count,
                   .num_rows = num_tokens,
                   .to_stride = count,
                   .from_stride = source_.stride_token_bytes,
                   .ahead = ahead},
                  *cache_.scale_of(head), Stores::kOrdinary);
        write_strips_(cache + head * cache_.stride_head_bytes + first / strips_.unit_bytes * strips_.strip_stride_bytes,
                      codes_, count, num_tokens, count / strips_.unit_bytes);
      }
    }
  }

  int64_t bytes_ahead(int64_t head, int64_t num_tokens) const {
    return cpu::bytes_ahead(head, num_heads_, source_.stride_head_bytes, num_tokens * source_.stride_token_bytes);
  }

  // This function is always inlined, because GCC removes calls of a function that only prefetches.
  [[gnu::always_inline]] void prefetch_heads(const char* from, int64_t num_tokens, int64_t head_bytes) const {
    for (int64_t token = 0; token < num_tokens; ++token) {
      for (int64_t i = 0; i < head_bytes; i += kCacheLine) prefetch(from + token * source_.stride_token_bytes + i);
    }
  }

  const TokenHeads& source_;
  const PackedCache& cache_;
  const PackedStrips strips_;
  const int64_t num_heads_, head_size_, source_element_bytes_, cache_element_bytes_;
  const Quantiser quantise_;
  StripWriter write_strips_;
  alignas(64) char codes_[kCodesBytes];
};

}  // namespace
}  // namespace multikv::cpu
