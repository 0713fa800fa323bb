#include "cuda/cache/gather_heads.cuh"
#include "cuda/cache/gather_packed.cuh"
#include "cuda/cache/slots.cuh"
#include "cuda/core/fp8_convert.cuh"
#include "params/gather_params.h"

namespace multikv::gpu {
namespace {

// What the copies from an EntryCache to the rows of one tensor share.
struct EntryGather : NoRest {
  EntryCache cache;
  TokenRows dst;
  int64_t num_vectors;
  Sequences gathered_sequences;

  EntryGather(const CpGatherCacheParams& p, int vector_bytes)
      : cache(p.cache), dst(p.dst), num_vectors(p.entry.row_size / vector_bytes), gathered_sequences(p.sequences) {}
  __host__ __device__ const Sequences& sequences() const { return gathered_sequences; }
  __host__ __device__ int64_t vectors() const { return num_vectors; }
  __device__ Pointer find(BlockOffset at) const { return cache.entry(at); }
};

// Copies entries that are contiguous in the cache and in the output, kWidth bytes at a time.
template <int kWidth>
struct CopyDense : EntryGather {
  static constexpr int kVectorBytes = kWidth;
  using Value = Pack<kWidth>;
  explicit CopyDense(const CpGatherCacheParams& p) : EntryGather(p, kWidth) {}
  __device__ Value read(Pointer from, int64_t vector) const {
    return Value::template read<true>(from + vector * kWidth);
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.template write<true>(dst.row(token) + vector * kWidth);
  }
};

// Copies entries that consist of several contiguous rows, kWidth bytes at a time.
template <int kWidth>
struct CopyRows : EntryGather {
  static constexpr int kBlocks = 8;
  static constexpr int kVectorBytes = kWidth;
  using Value = Pack<kWidth>;
  StridedRows rows;
  Divisor row_vectors;

  explicit CopyRows(const CpGatherCacheParams& p)
      : EntryGather(p, kWidth), rows(p.entry), row_vectors(Divisor::of(p.entry.row_size / kWidth)) {
    num_vectors *= rows.num_rows;
  }
  __device__ Value read(Pointer from, int64_t vector) const {
    return Value::template read<true>(from + offset_bytes(vector, rows.src_stride));
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.template write<true>(dst.row(token) + offset_bytes(vector, rows.dst_stride));
  }
  // Returns the offset of a vector from the start of its entry.
  __device__ int64_t offset_bytes(int64_t vector, const int64_t* strides) const {
    int64_t row = quotient_of(vector, row_vectors);
    int64_t bytes = (vector - row * row_vectors.signed_value()) * kWidth;
    for (int d = 0; d + 1 < rows.num_dims; ++d) {
      bytes += row % rows.size[d] * strides[d];
      row /= rows.size[d];
    }
    return bytes + row * strides[rows.num_dims - 1];
  }
};

// Converts fp8_ds_mla entries to bfloat16, kElements elements at a time. An entry lies in the device's cache or in the
// host's.
template <int kElements>
struct UpconvertEntry : NoRest {
  static constexpr int kVectorBytes = 2 * kElements;
  static constexpr int64_t kCodeVectors = DsMlaEntry::kLatentSize / kElements;
  // A vector of codes, or of rotary elements. Lanes with codes and lanes with rotary elements share one path as far as
  // possible, which saves registers (docs/performance.md).
  //
  //           first                        second
  //   codes   kElements codes              kElements == 8: two neighbouring scales
  //   rotary  the first half of its bytes  the second half
  struct Value {
    Pack<kElements> first, second;
    float scale;
    bool is_rope;
  };
  CpGatherAndUpconvertFp8KvCacheParams p;

  __host__ __device__ const Sequences& sequences() const { return p.sequences; }
  __host__ __device__ int64_t vectors() const { return kCodeVectors + DsMlaEntry::kRopeSize / kElements; }
  __device__ Pointer find(BlockOffset at) const {
    if (p.host_row_ids.is_given()) {
      // `at` is a logical slot, and not yet a slot of the cache. The row ids map it to a slot of the cache, or to a row
      // of host_cache. Logical blocks and the cache's blocks have the same size.
      const int64_t logical_slot = at.block * p.sequences.blocks.block_size.signed_value() + at.offset;
      const int64_t device_slot = p.device_row_ids.at(logical_slot);
      if (device_slot < 0) {
        const int64_t host_row = p.host_row_ids.at(logical_slot);
        if (static_cast<uint64_t>(host_row) >= static_cast<uint64_t>(p.num_host_rows)) return nullptr;
        return p.host_cache + host_row * p.host_stride_row_bytes;
      }
      at = split(p.sequences.blocks, device_slot);
      if (at.block >= p.cache.blocks.num_blocks) return nullptr;
    }
    return p.cache.entry(at);
  }
  __device__ Value read(Pointer entry, int64_t vector) const {
    Value value;
    value.is_rope = vector >= kCodeVectors;
    const char* from = entry + vector * kElements;
    if (value.is_rope) from = entry + DsMlaEntry::kRopeAt + (vector - kCodeVectors) * (2 * kElements);
    value.first = Pack<kElements>::template read<true>(from);
    const int64_t tile = value.is_rope ? 0 : vector * kElements / DsMlaEntry::kTileSize;
    const char* scales = entry + DsMlaEntry::kScalesAt;
    if constexpr (kElements == 8) {  // reads a pair of scales as one vector
      value.second = Pack<kElements>::template read<true>(value.is_rope ? from + kElements : scales + tile / 2 * 8);
      value.scale = __uint_as_float(tile % 2 == 0 ? value.second.words[0] : value.second.words[1]);
    } else {
      if (value.is_rope) value.second = Pack<kElements>::template read<true>(from + kElements);
      value.scale = __uint_as_float(load_word(scales + tile * 4));
    }
    return value;
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    auto out = dequantise<Float::kBFloat16, kElements>(value.first.words, value.scale, p.cache.codec.element);
    if (value.is_rope) {
      if constexpr (kElements == 1) {
        out.words[0] = (value.first.words[0] & 0xff) | (value.second.words[0] & 0xff) << 8;
      } else {
#pragma unroll
        for (int i = 0; i < kElements / 4; ++i) {
          out.words[i] = value.first.words[i];
          out.words[kElements / 4 + i] = value.second.words[i];
        }
      }
    }
    out.template write<true>(p.dst.row(token) + vector * kVectorBytes);
  }
};

AlignmentBits alignment_bits(const CpGatherCacheParams& p) {
  return p.cache.alignment_bits() | p.dst.alignment_bits() | p.entry.src_alignment_bits() |
         p.entry.dst_alignment_bits();
}

}  // namespace

template <>
cudaError_t launch(const CpGatherCacheParams& p, const Context& context) {
  const auto run = [&]<int kWidth>() {
    return p.entry.num_dims == 0 ? launch_gather(CopyDense<kWidth>(p), context)
                                 : launch_gather(CopyRows<kWidth>(p), context);
  };
  const int width = alignment_bits(p).widest(16);
  if (width == 16) return run.template operator()<16>();
  if (width == 8) return run.template operator()<8>();
  if (width == 4) return run.template operator()<4>();
  if (width == 2) return run.template operator()<2>();
  return run.template operator()<1>();
}

template <>
cudaError_t launch(const GatherAndMaybeDequantCacheParams& p, const Context& context) {
  return launch_heads(p.codec(), p.dtype, p.sequences, context, p.entry);
}

template <>
cudaError_t launch(const GatherKvCacheParams& p, const Context& context) {
  if (p.value.packs_slots) return launch_packed(p, context);
  if (p.key.num_elements() == 0) return launch_heads(p.codec(), p.dtype, p.sequences, context, p.value);
  if (p.value.num_elements() == 0) return launch_heads(p.codec(), p.dtype, p.sequences, context, p.key);
  return launch_heads(p.codec(), p.dtype, p.sequences, context, p.key, p.value);
}

template <>
cudaError_t launch(const CpGatherAndUpconvertFp8KvCacheParams& p, const Context& context) {
  const AlignmentBits bits =
      p.cache.alignment_bits() | p.dst.alignment_bits() | AlignmentBits(p.host_cache) | p.host_stride_row_bytes;
  return bits.widest(16) == 16 ? launch_gather(UpconvertEntry<8>{{}, p}, context)
                               : launch_gather(UpconvertEntry<1>{{}, p}, context);
}

}  // namespace multikv::gpu
