#include "gather.cuh"

namespace multikv::gpu {
namespace {

// Entries that lie dense on both sides.
struct DenseEntries {
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
  __device__ int64_t place(int64_t id, int64_t offset) const { return id * src_stride_block + offset * src_stride_slot; }
};

// Bytes as they are, kWidth at a time.
template <int kWidth>
struct CopyDense : DenseEntries {
  using Value = Pack<kWidth>;
  explicit CopyDense(const CpGatherCacheParams& p) : DenseEntries(p, kWidth) {}
  __device__ Value read(int64_t place, int64_t vector) const { return Value::read(src + place + vector * kWidth); }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.write(dst + token * dst_stride_token + vector * kWidth);
  }
};

// The same for entries of several rows.
template <int kWidth>
struct CopyRows : DenseEntries {
  using Value = Pack<kWidth>;
  Rows rows;
  Divisor row_vectors;

  explicit CopyRows(const CpGatherCacheParams& p)
      : DenseEntries(p, kWidth), rows(p.entry), row_vectors(Divisor::of(p.entry.row_size / kWidth)) {
    num_vectors *= rows.num_rows;
  }
  __device__ Value read(int64_t place, int64_t vector) const {
    return Value::read(src + place + within(vector, rows.src_stride));
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.write(dst + token * dst_stride_token + within(vector, rows.dst_stride));
  }
  // Byte offset of a vector within the entry.
  __device__ int64_t within(int64_t vector, const int64_t* strides) const {
    int64_t row = row_vectors.divide(vector, high_product);
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
  struct Value {
    Pack<kElements> codes;
    float scale;
  };
  const float* scale;
  CacheFormat format;

  explicit DequantiseDense(const GatherAndMaybeDequantCacheParams& p)
      : DenseEntries(p.gather, kElements), scale(p.scale), format(p.format) {}
  __device__ Value read(int64_t place, int64_t vector) const {
    return {Pack<kElements>::read(src + place + vector * kElements), *scale};
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    constexpr int64_t kBytes = kElements * num_bytes(kDtype);
    dequantise<kDtype, kElements>(value.codes.words, value.scale, format)
        .write(dst + token * dst_stride_token + vector * kBytes);
  }
};

// fp8_ds_mla to bfloat16, kElements of the output at a time; the place is an address, for there are two caches.
template <int kElements>
struct UpconvertEntry {
  static constexpr int64_t kCodeVectors = DsMlaEntry::kLatentSize / kElements;
  struct Value {
    Pack<kElements * 2> elements;  // of the rotary part; else the codes
    float scale;
  };
  CpGatherAndUpconvertFp8KvCacheParams p;

  __host__ __device__ const Sequences& sequences() const { return p.sequences; }
  __host__ __device__ int64_t vectors() const { return kCodeVectors + DsMlaEntry::kRopeSize / kElements; }
  __device__ int64_t place(int64_t id, int64_t offset) const {
    if (p.host_row_ids.data != nullptr) {
      const int64_t row = id * static_cast<int64_t>(p.sequences.block_size.value) + offset;
      const int64_t device_row = p.device_row_ids.at(row);
      if (device_row < 0) {
        const int64_t host_row = p.host_row_ids.at(row);
        if (static_cast<uint64_t>(host_row) >= static_cast<uint64_t>(p.num_host_rows)) return -1;
        return reinterpret_cast<int64_t>(p.host_cache) + host_row * p.host_stride_row_bytes;
      }
      id = p.sequences.block_size.divide(device_row, high_product);
      offset = device_row - id * static_cast<int64_t>(p.sequences.block_size.value);
      if (id >= p.num_device_blocks) return -1;
    }
    return reinterpret_cast<int64_t>(p.src_cache) + id * p.src_stride_block_bytes + offset * p.src_stride_slot_bytes;
  }
  __device__ Value read(int64_t place, int64_t vector) const {
    const char* entry = reinterpret_cast<const char*>(place);
    Value value;
    if (vector < kCodeVectors) {
      const auto codes = Pack<kElements>::read(entry + vector * kElements);
#pragma unroll
      for (int i = 0; i < (kElements + 3) / 4; ++i) value.elements.words[i] = codes.words[i];
      const char* scale = entry + DsMlaEntry::kScalesAt + vector * kElements / DsMlaEntry::kTileSize * 4;
      value.scale = __uint_as_float(kElements > 1 ? load<4>(scale).x : load_word(scale));
    } else {
      value.elements = read_rope(entry + DsMlaEntry::kRopeAt + (vector - kCodeVectors) * kElements * 2);
    }
    return value;
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    char* to = static_cast<char*>(p.dst) + (token * p.dst_stride_token + vector * kElements) * 2;
    if (vector < kCodeVectors) {
      dequantise<Float::kBFloat16, kElements>(value.elements.words, value.scale, p.format).write(to);
    } else {
      value.elements.write(to);
    }
  }
  __device__ static Pack<kElements * 2> read_rope(const char* from) {
    if constexpr (kElements > 1) {
      return Pack<kElements * 2>::read(from);
    } else {  // an entry may begin at any byte
      Pack<2> element;
      element.words[0] = static_cast<uint8_t>(from[0]) | static_cast<uint8_t>(from[1]) << 8;
      return element;
    }
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
  constexpr int kElements = 16;
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
  const bool is_wide = common_alignment(16, {address(p.src_cache), p.src_stride_block_bytes, p.src_stride_slot_bytes,
                                             address(p.dst), p.dst_stride_token * 2, address(p.host_cache),
                                             p.host_stride_row_bytes}) == 16;
  if (is_wide) launch_gather(UpconvertEntry<16>{p}, context);
  else launch_gather(UpconvertEntry<1>{p}, context);
}

}  // namespace multikv::gpu
