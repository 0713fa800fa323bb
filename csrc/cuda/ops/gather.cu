#include "cuda/cache/gather_rows.cuh"

namespace multikv::gpu {
namespace {

// An entry that is moved by its vectors alone.
struct NoRest {
  static constexpr int kBlocks = 10;
  using Place = const char*;
  struct Rest {};
  __device__ static Rest read_rest(Place) { return {}; }
  __device__ static void write_rest(int64_t, Place, Rest) {}
};

// Entries that lie dense on both sides.
struct DenseEntries : NoRest {
  const char* src;
  char* dst;
  int64_t src_stride_block, src_stride_slot, dst_stride_token;  // bytes
  int64_t num_vectors;
  Sequences q;

  DenseEntries(const CpGatherCacheParams& p, int vector_bytes)
      : src(static_cast<const char*>(p.src_cache)), dst(static_cast<char*>(p.dst)),
        src_stride_block(p.src_stride_block_bytes), src_stride_slot(p.src_stride_slot_bytes),
        dst_stride_token(p.dst_stride_token_bytes), num_vectors(p.entry.row_size / vector_bytes), q(p.sequences) {}
  __host__ __device__ const Sequences& sequences() const { return q; }
  __host__ __device__ int64_t vectors() const { return num_vectors; }
  __device__ Place place(Found entry) const {
    return src + entry.block * src_stride_block + entry.offset * src_stride_slot;
  }
};

// Bytes as they are, kWidth at a time.
template <int kWidth>
struct CopyDense : DenseEntries {
  static constexpr int kVectorBytes = kWidth;
  using Value = Pack<kWidth>;
  explicit CopyDense(const CpGatherCacheParams& p) : DenseEntries(p, kWidth) {}
  __device__ Value read(Place place, int64_t vector) const {
    return Value::template read<true>(place + vector * kWidth);
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.template write<true>(dst + token * dst_stride_token + vector * kWidth);
  }
};

// The same for entries of several rows.
template <int kWidth>
struct CopyRows : DenseEntries {
  static constexpr int kBlocks = 8;
  static constexpr int kVectorBytes = kWidth;
  using Value = Pack<kWidth>;
  Rows rows;
  Divisor row_vectors;

  explicit CopyRows(const CpGatherCacheParams& p)
      : DenseEntries(p, kWidth), rows(p.entry), row_vectors(Divisor::of(p.entry.row_size / kWidth)) {
    num_vectors *= rows.num_rows;
  }
  __device__ Value read(Place place, int64_t vector) const {
    return Value::template read<true>(place + within(vector, rows.src_stride));
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.template write<true>(dst + token * dst_stride_token + within(vector, rows.dst_stride));
  }
  // Byte offset of a vector within the entry.
  __device__ int64_t within(int64_t vector, const int64_t* strides) const {
    int64_t row = quotient_of(vector, row_vectors);
    int64_t bytes = (vector - row * static_cast<int64_t>(row_vectors.value)) * kWidth;
    for (int d = 0; d + 1 < rows.num_dims; ++d) {
      bytes += row % rows.size[d] * strides[d];
      row /= rows.size[d];
    }
    return bytes + row * strides[rows.num_dims - 1];
  }
};

// kElements codes become floats.
template <Float kDtype, int kElements>
struct DequantiseDense : DenseEntries {
  static constexpr int kVectorBytes = kElements * static_cast<int>(num_bytes(kDtype));
  struct Value {
    Pack<kElements> codes;
    float scale;
  };
  const float* scale;
  CacheFormat format;

  explicit DequantiseDense(const GatherAndMaybeDequantCacheParams& p)
      : DenseEntries(p.gather, kElements), scale(p.scale), format(p.format) {}
  __device__ Value read(Place place, int64_t vector) const {
    return {Pack<kElements>::template read<true>(place + vector * kElements), *scale};
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    dequantise<kDtype, kElements>(value.codes.words, value.scale, format)
        .template write<true>(dst + token * dst_stride_token + vector * kVectorBytes);
  }
};

// fp8_ds_mla to bfloat16, kElements of the output at a time. There are two caches.
template <int kElements>
struct UpconvertEntry : NoRest {
  static constexpr int kVectorBytes = 2 * kElements, kBlocks = 10;
  static constexpr int64_t kCodeVectors = DsMlaEntry::kLatentSize / kElements;
  // Lanes of a group take codes and rotary elements side by side, so both go the same way as far as they can.
  struct Value {
    Pack<kElements> first, second;  // the codes; or the rotary elements in two halves
    float scale;
    bool is_rope;
  };
  CpGatherAndUpconvertFp8KvCacheParams p;

  __host__ __device__ const Sequences& sequences() const { return p.sequences; }
  __host__ __device__ int64_t vectors() const { return kCodeVectors + DsMlaEntry::kRopeSize / kElements; }
  __device__ Place place(Found entry) const {
    auto [id, offset] = entry;
    if (p.host_row_ids.data != nullptr) {
      const int64_t row = id * static_cast<int64_t>(p.sequences.block_size.value) + offset;
      const int64_t device_row = p.device_row_ids.at(row);
      if (device_row < 0) {
        const int64_t host_row = p.host_row_ids.at(row);
        if (static_cast<uint64_t>(host_row) >= static_cast<uint64_t>(p.num_host_rows)) return nullptr;
        return static_cast<const char*>(p.host_cache) + host_row * p.host_stride_row_bytes;
      }
      id = quotient_of(device_row, p.sequences.block_size);
      offset = device_row - id * static_cast<int64_t>(p.sequences.block_size.value);
      if (id >= p.num_device_blocks) return nullptr;
    }
    return static_cast<const char*>(p.src_cache) + id * p.src_stride_block_bytes + offset * p.src_stride_slot_bytes;
  }
  __device__ Value read(Place entry, int64_t vector) const {
    Value value;
    value.is_rope = vector >= kCodeVectors;
    const char* from = entry + vector * kElements;
    if (value.is_rope) from = entry + DsMlaEntry::kRopeAt + (vector - kCodeVectors) * (2 * kElements);
    value.first = Pack<kElements>::template read<true>(from);
    const int64_t tile = value.is_rope ? 0 : vector * kElements / DsMlaEntry::kTileSize;
    const char* scales = entry + DsMlaEntry::kScalesAt;
    if constexpr (kElements == 8) {  // two scales are a vector as well
      value.second = Pack<kElements>::template read<true>(value.is_rope ? from + kElements : scales + tile / 2 * 8);
      value.scale = __uint_as_float(tile % 2 == 0 ? value.second.words[0] : value.second.words[1]);
    } else {
      if (value.is_rope) value.second = Pack<kElements>::template read<true>(from + kElements);
      value.scale = __uint_as_float(load_word(scales + tile * 4));
    }
    return value;
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    auto out = dequantise<Float::kBFloat16, kElements>(value.first.words, value.scale, p.format);
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
    out.template write<true>(static_cast<char*>(p.dst) + (token * p.dst_stride_token + vector * kElements) * 2);
  }
};

int copy_alignment(const CpGatherCacheParams& p) {
  const Rows& e = p.entry;
  int64_t strides = 0;
  for (int d = 0; d < e.num_dims; ++d) strides |= e.src_stride[d] | e.dst_stride[d];
  return common_alignment(16, {address(p.src_cache), address(p.dst), e.row_size, p.src_stride_block_bytes,
                               p.src_stride_slot_bytes, p.dst_stride_token_bytes, strides});
}

template <Float kDtype>
void launch_dequantise(const GatherAndMaybeDequantCacheParams& p, const Context& context) {
  constexpr int kElements = 8;
  const CpGatherCacheParams& g = p.gather;
  const bool is_wide = common_alignment(16, {address(g.dst), g.dst_stride_token_bytes}) == 16 &&
                       common_alignment(kElements, {address(g.src_cache), g.entry.row_size, g.src_stride_block_bytes,
                                                    g.src_stride_slot_bytes}) == kElements;
  if (is_wide) launch_gather(DequantiseDense<kDtype, kElements>(p), context);
  else launch_gather(DequantiseDense<kDtype, 1>(p), context);
}

}  // namespace

void launch(const CpGatherCacheParams& p, const Context& context) {
  const auto run = [&]<int kWidth>() {
    if (p.entry.num_dims == 0) launch_gather(CopyDense<kWidth>(p), context);
    else launch_gather(CopyRows<kWidth>(p), context);
  };
  switch (copy_alignment(p)) {
    case 16: return run.template operator()<16>();
    case 8: return run.template operator()<8>();
    case 4: return run.template operator()<4>();
    case 2: return run.template operator()<2>();
    default: return run.template operator()<1>();
  }
}

void launch(const GatherAndMaybeDequantCacheParams& p, const Context& context) {
  if (p.format == CacheFormat::kSame) return launch(p.gather, context);
  with_dtype(p.dtype, [&]<Float kDtype>() { launch_dequantise<kDtype>(p, context); });
}

void launch(const CpGatherAndUpconvertFp8KvCacheParams& p, const Context& context) {
  const bool is_wide =
      common_alignment(16, {address(p.src_cache), p.src_stride_block_bytes, p.src_stride_slot_bytes, address(p.dst),
                            p.dst_stride_token * 2, address(p.host_cache), p.host_stride_row_bytes}) == 16;
  if (is_wide) launch_gather(UpconvertEntry<8>{{}, p}, context);
  else launch_gather(UpconvertEntry<1>{{}, p}, context);
}

}  // namespace multikv::gpu
