// Copies or dequantises the heads of runs of a gather.
#pragma once

#include "cpu/isa/cache/gather_runs.h"
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
        is_head_major_(cache_.stride_head_bytes > cache_.stride_row_bytes) {}

  // `next` is the run that is gathered after this one, or nullptr.
  void gather(const GatherRun& run, const GatherRun* next) {
    if (p_.packs_slots) gather_columns(run);
    else if (cache_.vector_size.signed_value() == p_.head_size) gather_heads(run, next);
    else gather_vectors(run);
  }

 private:
  static constexpr int64_t kBufferBytes = 16384;

  char* cache_row(BlockOffset at) const { return cache_.block(at.block) + at.offset * cache_.stride_row_bytes; }
  float scale_of(int64_t head) const { return dequantise_ == nullptr ? 1.0f : *cache_.scale_of(head); }

  // Copies or dequantises `count` contiguous elements. `next`: see copy().
  void convert(char* to, const char* from, int64_t count, float scale, const char* next = nullptr) const {
    if (dequantise_ == nullptr) copy(to, from, count * element_bytes_, stores_, next);
    else dequantise_(to, from, count, scale, stores_, next);
  }

  // Gathers heads that are contiguous in the cache, in the order in which they lie there.
  void gather_heads(const GatherRun& run, const GatherRun* next) const {
    const char* from = cache_row(run.at);
    const char* after = next == nullptr ? nullptr : cache_row(next->at);
    if (is_dense_) {
      convert(p_.dst.row(run.row), from, run.count * p_.head_size, scale_of(0), after);
    } else if (is_head_major_) {
      for (int64_t head = 0; head < p_.num_heads; ++head) {
        const float scale = scale_of(head);
        const char* ahead = head + 1 < p_.num_heads ? from + cache_.stride_head_bytes : after;
        for (int64_t i = 0; i < run.count; ++i) {
          const char* later = ahead == nullptr ? nullptr : ahead + i * cache_.stride_row_bytes;
          convert(p_.dst.head(run.row + i, head), from + i * cache_.stride_row_bytes, p_.head_size, scale, later);
        }
        from += cache_.stride_head_bytes;
      }
    } else {
      for (int64_t i = 0; i < run.count; ++i, from += cache_.stride_row_bytes) {
        for (int64_t head = 0; head < p_.num_heads; ++head) {
          convert(p_.dst.head(run.row + i, head), from + head * cache_.stride_head_bytes, p_.head_size, scale_of(head));
        }
      }
    }
  }

  // Gathers heads that the layout of packed keys splits into vectors. The vectors of a head are collected in the
  // buffer; large vectors need no buffer.
  void gather_vectors(const GatherRun& run) {
    const int64_t vector_size = cache_.vector_size.signed_value(), vector_bytes = vector_size * element_bytes_;
    const int64_t vectors = p_.head_size / vector_size;
    const int64_t at_once = vector_bytes >= kBufferBytes / 2 ? 1 : kBufferBytes / vector_bytes;
    for (int64_t head = 0; head < p_.num_heads; ++head) {
      const float scale = scale_of(head);
      for (int64_t i = 0; i < run.count; ++i) {
        const char* from = cache_row({run.at.block, run.at.offset + i}) + head * cache_.stride_head_bytes;
        char* to = p_.dst.head(run.row + i, head);
        for (int64_t first = 0; first < vectors; first += at_once) {
          const int64_t count = vectors - first < at_once ? vectors - first : at_once;
          const char* vector = from + first * cache_.stride_vector_bytes;
          if (at_once > 1) vector = collect(vector, count, vector_bytes);
          convert(to + first * vector_size * dst_element_bytes_, vector, count * vector_size, scale);
        }
      }
    }
  }

  // Copies `count` vectors of one slot to the buffer, and returns the buffer.
  const char* collect(const char* from, int64_t count, int64_t vector_bytes) {
    if (vector_bytes == 16) {
      for (int64_t i = 0; i < count; ++i) std::memcpy(buffer_ + i * 16, from + i * cache_.stride_vector_bytes, 16);
    } else {
      for (int64_t i = 0; i < count; ++i) {
        std::memcpy(buffer_ + i * vector_bytes, from + i * cache_.stride_vector_bytes, vector_bytes);
      }
    }
    return buffer_;
  }

  // Gathers heads of the layout of packed values: neighbouring elements of the cache belong to neighbouring slots.
  void gather_columns(const GatherRun& run) {
    switch (element_bytes_) {
      case 1: gather_columns_of<uint8_t>(run); break;
      case 2: gather_columns_of<uint16_t>(run); break;
      default: gather_columns_of<uint32_t>(run); break;
    }
  }

  // Transposes pieces of a head of up to kTokens tokens into the buffer, and then converts them.
  template <class Unit>
  void gather_columns_of(const GatherRun& run) {
    constexpr int64_t kTokens = 16, kDims = kBufferBytes / kTokens / static_cast<int64_t>(sizeof(Unit));
    const int64_t vector_size = cache_.vector_size.signed_value();
    for (int64_t i = 0, count = 0; i < run.count; i += count) {
      const int64_t offset = run.at.offset + i, vector = offset / vector_size, first = offset - vector * vector_size;
      count = vector_size - first < run.count - i ? vector_size - first : run.count - i;
      count = count < kTokens ? count : kTokens;
      const char* from = cache_.block(run.at.block) + vector * cache_.stride_vector_bytes + first * element_bytes_;
      for (int64_t head = 0; head < p_.num_heads; ++head) {
        const float scale = scale_of(head);
        for (int64_t dim = 0; dim < p_.head_size; dim += kDims) {
          const int64_t dims = p_.head_size - dim < kDims ? p_.head_size - dim : kDims;
          transpose<Unit>(from + head * cache_.stride_head_bytes + dim * cache_.stride_row_bytes, count, dims);
          for (int64_t t = 0; t < count; ++t) {
            convert(p_.dst.head(run.row + i + t, head) + dim * dst_element_bytes_, buffer_ + t * dims * element_bytes_,
                    dims, scale);
          }
        }
      }
    }
  }

  // Writes rows of `dims` elements to the buffer, one for each of `num_tokens` tokens.
  template <class Unit>
  void transpose(const char* from, int64_t num_tokens, int64_t dims) {
    for (int64_t d = 0; d < dims; ++d, from += cache_.stride_row_bytes) {
      for (int64_t t = 0; t < num_tokens; ++t) {
        std::memcpy(buffer_ + (t * dims + d) * sizeof(Unit), from + t * sizeof(Unit), sizeof(Unit));
      }
    }
  }

  const HeadGather& p_;
  const PackedCache& cache_;
  const Dequantise dequantise_;  // nullptr: the format is a float format, whose elements are copied
  const int64_t element_bytes_, dst_element_bytes_;
  const Stores stores_;
  const bool is_dense_;       // neighbouring slots of a run are contiguous on both sides
  const bool is_head_major_;  // the slots of a head are nearer to each other than the heads of a slot
  alignas(64) char buffer_[kBufferBytes];
};

}  // namespace
}  // namespace multikv::cpu
