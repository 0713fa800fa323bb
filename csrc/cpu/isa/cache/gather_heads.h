// Copies or dequantises the heads of runs of a gather.
#pragma once

#include "cpu/isa/cache/gather_runs.h"
#include "cpu/isa/codec/dequantise.h"
#include "cpu/isa/simd/copy.h"
#include "cpu/isa/simd/transpose.h"
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
        is_head_major_(cache_.stride_head_bytes > cache_.stride_row_bytes || cache_.scale_stride_head != 0) {}

  // `next` is the run that is gathered after this one, or nullptr.
  void gather(const GatherRun& run, const GatherRun* next) {
    if (p_.packs_slots) gather_columns(run);
    else if (cache_.vector_size.signed_value() == p_.head_size) gather_heads(run, next);
    else gather_vectors(run);
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
      // If rows.ahead is 0, the row itself is prefetched. copy() would not be faster with nullptr.
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

  // Gathers heads that the layout of packed keys splits into vectors. Vectors are collected in the buffer, unless they
  // are large.
  void gather_vectors(const GatherRun& run) {
    const int64_t vector_size = cache_.vector_size.signed_value(), vector_bytes = vector_size * element_bytes_;
    const int64_t vectors = p_.head_size / vector_size, at_once = kRowBytes / vector_bytes;
    for (int64_t i = 0; i < run.count; i += kTokens) {
      const int64_t num_tokens = run.count - i < kTokens ? run.count - i : kTokens;
      const char* row = cache_row({run.at.block, run.at.offset + i});
      for (int64_t head = 0; head < p_.num_heads; ++head) {
        const float scale = scale_of(head);
        for (int64_t first = 0, count = 0; first < vectors; first += count) {
          count = at_once > 1 ? (vectors - first < at_once ? vectors - first : at_once) : 1;
          const char* from = row + head * cache_.stride_head_bytes + first * cache_.stride_vector_bytes;
          Matrix rows = {.count = count * vector_size,
                         .num_rows = num_tokens,
                         .to_stride = p_.dst.stride_token_bytes,
                         .from_stride = cache_.stride_row_bytes};
          if (at_once > 1) {
            from = collect(from, num_tokens, count, vector_bytes);
            rows.from_stride = count * vector_bytes;
          }
          convert(p_.dst.head(run.row + i, head) + first * vector_size * dst_element_bytes_, from, rows, scale);
        }
      }
    }
  }

  // Copies `count` vectors of each token to the buffer, token by token, and returns the buffer.
  const char* collect(const char* from, int64_t num_tokens, int64_t count, int64_t vector_bytes) {
    if (vector_bytes == 16) collect_vectors(from, num_tokens, count, std::integral_constant<int64_t, 16>());
    else collect_vectors(from, num_tokens, count, vector_bytes);
    return buffer_;
  }
  template <class Bytes>
  void collect_vectors(const char* from, int64_t num_tokens, int64_t count, Bytes vector_bytes) {
    for (int64_t vector = 0; vector < count; ++vector, from += cache_.stride_vector_bytes) {
      for (int64_t token = 0; token < num_tokens; ++token) {
        std::memcpy(buffer_ + (token * count + vector) * vector_bytes, from + token * cache_.stride_row_bytes,
                    vector_bytes);
      }
    }
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
    constexpr int64_t kDims = kRowBytes / static_cast<int64_t>(sizeof(Unit));
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
          convert(p_.dst.head(run.row + i, head) + dim * dst_element_bytes_, buffer_,
                  {.count = dims,
                   .num_rows = count,
                   .to_stride = p_.dst.stride_token_bytes,
                   .from_stride = dims * element_bytes_},
                  scale);
        }
      }
    }
  }

  // Writes rows of `dims` elements to the buffer, one for each of `num_tokens` tokens: square by square, where the last
  // squares overlap those before them.
  template <class Unit>
  void transpose(const char* from, int64_t num_tokens, int64_t dims) {
    using Square = Segments<Unit, kSegmentBytes>;
    constexpr int64_t kSide = Square::kPerSegment, kBytes = sizeof(Unit);
    if (num_tokens < kSide || dims < kSide) {
      transpose_unit_by_unit<Unit>(from, num_tokens, dims);
      return;
    }
    for (int64_t i = 0; i < num_tokens; i += kSide) {
      const int64_t token = i < num_tokens - kSide ? i : num_tokens - kSide;
      for (int64_t j = 0; j < dims; j += kSide) {
        const int64_t dim = j < dims - kSide ? j : dims - kSide;
        const char* rows[kSide];
        for (int64_t k = 0; k < kSide; ++k) rows[k] = from + (dim + k) * cache_.stride_row_bytes + token * kBytes;
        typename Square::Vector columns[kSide];
        Square::transpose(columns, rows);
        for (int64_t k = 0; k < kSide; ++k)
          std::memcpy(buffer_ + ((token + k) * dims + dim) * kBytes, &columns[k], kSegmentBytes);
      }
    }
  }

  template <class Unit>
  void transpose_unit_by_unit(const char* from, int64_t num_tokens, int64_t dims) {
    constexpr int64_t kBytes = sizeof(Unit);
    for (int64_t dim = 0; dim < dims; ++dim, from += cache_.stride_row_bytes) {
      for (int64_t token = 0; token < num_tokens; ++token) {
        std::memcpy(buffer_ + (token * dims + dim) * kBytes, from + token * kBytes, kBytes);
      }
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
  alignas(64) char buffer_[kBufferBytes];
};

}  // namespace
}  // namespace multikv::cpu
