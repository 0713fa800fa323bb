#include "cpu/isa/cache/flash_writer.h"
#include "cpu/isa/cache/packed_writer.h"
#include "cpu/isa/cache/strided.h"
#include "cpu/isa/norm_rope/heads.h"
#include "cpu/scratch.h"
#include "params/norm_rope_params.h"

namespace multikv::cpu {
namespace {

// The size of the scratch memory that rows are processed in, unless a single row is larger.
constexpr int64_t kScratchBytes = 16384;

int64_t scratch_bytes(int64_t row_bytes) {
  const int64_t bytes = row_bytes < kScratchBytes ? kScratchBytes : row_bytes;
  return (bytes + kCacheLine - 1) & -kCacheLine;
}

// The number of rows that fit into kScratchBytes, but at least one and at most `most`.
int64_t rows_of_scratch(int64_t row_bytes, int64_t most) {
  const int64_t rows = kScratchBytes / row_bytes;
  return rows < 1 ? 1 : rows < most ? rows : most;
}

// Processes the queries of tokens, and writes them to query.out.
template <FloatElement T, FloatElement Table>
class QueryWriter {
 public:
  QueryWriter(const QkNormRopeCacheParams& p, HeadProcessor<T, Table>& process, char* scratch, Stores stores)
      : p_(p), process_(process), scratch_(scratch),
        quantise_(p.query_element, p.dtype,
                  {.data = p.query_scale,
                   .stride = 0,
                   .num_scales = 1,
                   .num_elements = p.slots.num_tokens * p.query.num_heads * p.head_size}),
        max_heads_(rows_of_scratch(p.query.source.head_bytes, process.kMaxHeads)),
        is_in_place_(p.query.out.data == p.query.source.data),
        is_direct_(!quantise_ && (stores == Stores::kOrdinary || is_in_place_ || process.streams(p.query.out))),
        stores_(stores) {}

  void write(int64_t token) {
    const NormRopeHeads& query = p_.query;
    for (int64_t first = 0; first < query.num_heads; first += max_heads_) {
      const int64_t left = query.num_heads - first, count = left < max_heads_ ? left : max_heads_;
      char* to = query.out.head(token, first);
      if (is_direct_) {
        process_(false, token, first, count,
                 {to, query.out.stride_head_bytes, is_in_place_ ? Stores::kOrdinary : stores_});
        continue;
      }
      process_(false, token, first, count, {scratch_, query.source.head_bytes});
      write_scratch(to, count);
    }
  }

 private:
  void write_scratch(char* to, int64_t num_heads) {
    const TokenHeads& out = p_.query.out;
    const bool is_one_row = out.stride_head_bytes == out.head_bytes;
    const int64_t num_rows = is_one_row ? 1 : num_heads, heads = is_one_row ? num_heads : 1;
    const int64_t from_stride = p_.query.source.head_bytes;
    if (quantise_) {
      const Matrix rows = {.count = heads * p_.head_size,
                           .num_rows = num_rows,
                           .to_stride = out.stride_head_bytes,
                           .from_stride = from_stride};
      return quantise_(to, scratch_, rows, *p_.query_scale, stores_);
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      copy(to + row * out.stride_head_bytes, scratch_ + row * from_stride, heads * out.head_bytes, stores_);
    }
  }

  const QkNormRopeCacheParams& p_;
  HeadProcessor<T, Table>& process_;
  char* const scratch_;
  const Quantiser quantise_;
  const int64_t max_heads_;
  const bool is_in_place_, is_direct_;
  const Stores stores_;
};

// Processes the keys of tokens into scratch memory, from where they go to key.out and to the cache.
template <FloatElement T, FloatElement Table>
class KeyBuffer {
 public:
  KeyBuffer(const QkNormRopeCacheParams& p, HeadProcessor<T, Table>& process, char* scratch)
      : p_(p), process_(process), row_bytes_(row_bytes(p)), scratch_(scratch) {}

  static int64_t row_bytes(const QkNormRopeCacheParams& p) { return p.key.num_heads * p.key.source.head_bytes; }

  int64_t max_tokens() const { return rows_of_scratch(row_bytes_, kMaxTokens); }
  TokenHeads heads() { return {scratch_, row_bytes_, p_.key.source.head_bytes, p_.key.source.head_bytes}; }

  // Processes the keys of a token into row `row` of the scratch memory.
  void fill(int64_t token, int64_t row) {
    const NormRopeHeads& key = p_.key;
    char* to = scratch_ + row * row_bytes_;
    for (int64_t first = 0; first < key.num_heads; first += process_.kMaxHeads) {
      const int64_t left = key.num_heads - first, count = left < process_.kMaxHeads ? left : process_.kMaxHeads;
      process_(true, token, first, count, {to + first * key.source.head_bytes, key.source.head_bytes});
    }
    if (key.out.data == nullptr) return;
    for (int64_t head = 0; head < key.num_heads; ++head) {
      copy(key.out.head(token, head), to + head * key.source.head_bytes, key.out.head_bytes, Stores::kOrdinary);
    }
  }

 private:
  static constexpr int64_t kMaxTokens = 16;

  const QkNormRopeCacheParams& p_;
  HeadProcessor<T, Table>& process_;
  const int64_t row_bytes_;
  char* const scratch_;
};

// Return the params with which reshape_and_cache_flash or reshape_and_cache writes the keys in `keys`, and the values.
ReshapeAndCacheFlashParams flash_write(const QkNormRopeCacheParams& p, const TokenHeads& keys) {
  ReshapeAndCacheFlashParams write{};
  const auto set = [&](FlashWrite& to, const TokenHeads& source, const HeadCache& cache) {
    static_cast<CacheView&>(to.cache) = cache;
    to.cache.stride_slot_bytes = cache.stride_row_bytes;
    to.cache.stride_head_bytes = cache.stride_head_bytes;
    to.source = source;
    to.head_size = p.head_size;
  };
  set(write.key, keys, p.key_cache);
  set(write.value, p.value, p.value_cache);
  write.slots = p.slots;
  write.num_heads = p.key.num_heads;
  write.dtype = p.dtype;
  return write;
}

ReshapeAndCacheParams packed_write(const QkNormRopeCacheParams& p, const TokenHeads& keys) {
  ReshapeAndCacheParams write{};
  write.key.source = keys;
  static_cast<PackedCache&>(write.key.cache) = p.key_cache;
  write.value.source = p.value;
  static_cast<PackedCache&>(write.value.cache) = p.value_cache;
  write.slots = p.slots;
  write.num_heads = p.key.num_heads;
  write.head_size = p.head_size;
  write.dtype = p.dtype;
  return write;
}

// Writes the tokens [begin, end). key_writer reads from `keys`, which holds the keys of a few tokens at a time.
template <class Writer, FloatElement T, FloatElement Table>
void write_tokens(const QkNormRopeCacheParams& p, int64_t begin, int64_t end, QueryWriter<T, Table>& queries,
                  KeyBuffer<T, Table>& keys, Writer& key_writer, Writer& value_writer) {
  const int64_t max_tokens = keys.max_tokens();
  int64_t next = begin;
  // Processes tokens that are not cached.
  const auto skip_to = [&](int64_t token) {
    for (; next < token; ++next) {
      queries.write(next);
      if (p.key.out.data != nullptr) keys.fill(next, 0);
    }
  };
  for_each_run(p.slots, p.blocks(), begin, end, [&](const TokenRun& run) {
    skip_to(run.token);
    for (int64_t i = 0; i < run.count; i += max_tokens) {
      const int64_t count = run.count - i < max_tokens ? run.count - i : max_tokens;
      const BlockOffset at = {run.at.block, run.at.offset + i};
      for (int64_t j = 0; j < count; ++j, ++next) {
        queries.write(next);
        keys.fill(next, j);
      }
      key_writer.write(TokenRun{0, count, at});
      value_writer.write(TokenRun{run.token + i, count, at});
    }
  });
  skip_to(end);
}

template <FloatElement T, FloatElement Table>
void run_tokens(const QkNormRopeCacheParams& p, int64_t begin, int64_t end, char* scratch, Stores stores) {
  HeadProcessor<T, Table> process(p);
  QueryWriter<T, Table> queries(p, process, scratch, stores);
  KeyBuffer<T, Table> keys(p, process, scratch + scratch_bytes(p.query.source.head_bytes));
  if (p.is_packed) {
    const ReshapeAndCacheParams write = packed_write(p, keys.heads());
    PackedWriter key(write, write.key, stores), value(write, write.value, stores);
    write_tokens(p, begin, end, queries, keys, key, value);
  } else {
    const ReshapeAndCacheFlashParams write = flash_write(p, keys.heads());
    FlashWriter key(write, write.key, stores), value(write, write.value, stores);
    write_tokens(p, begin, end, queries, keys, key, value);
  }
  finish(stores);
}

// Norms rows. Chunks of weights are loaded once for as many rows as kMaxBytes hold. If stores are streaming but
// normalise() cannot stream, the rows are normed in scratch memory first, unless the norm is in place or a row is
// larger than kScratchBytes.
template <FloatElement T>
class RowNorm {
 public:
  RowNorm(const RmsNormParams& p, char* scratch, Stores stores)
      : p_(p), scratch_(scratch), stores_(stores), weights_(p.weight, p.norm.weight_bias),
        streams_(stores == Stores::kStreaming && p.input != p.out && normalise_streams<T>(p.row_elements) &&
                 (AlignmentBits(p.out) | p.rows.dst_alignment_bits()).widest(kCacheLine) == kCacheLine),
        is_direct_(streams_ || stores == Stores::kOrdinary || p.input == p.out || p.rows.row_size > kScratchBytes),
        src_stride_(p.rows.num_dims == 1 ? p.rows.src_stride[0] : 0),
        dst_stride_(p.rows.num_dims == 1 ? p.rows.dst_stride[0] : 0) {}

  // Rows of several dimensions are normed one by one.
  int64_t max_rows() const {
    const int64_t bytes = is_direct_ ? kMaxBytes : kScratchBytes, rows = bytes / p_.rows.row_size;
    return p_.rows.num_dims != 1 || rows < 1 ? 1 : rows < kMaxRows ? rows : kMaxRows;
  }

  // Norms `count` <= max_rows() rows.
  void operator()(char* out, const char* input, int64_t count) {
    float factors[kMaxRows];
    sums_of_squares_(factors, {input, count, src_stride_}, p_.row_elements);
    replace_by_reciprocal_roots(p_.norm, factors, count, p_.row_elements);
    char* to = is_direct_ ? out : scratch_;
    const int64_t to_stride = is_direct_ ? dst_stride_ : p_.rows.row_size;
    for (int64_t first = 0; first < p_.row_elements; first += weights_.kMaxElements) {
      const int64_t left = p_.row_elements - first, size = left < weights_.kMaxElements ? left : weights_.kMaxElements;
      weights_.load(first, size);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t offset = first * kBytes;
        const char* from = input + i * src_stride_ + offset;
        // Prefetches the same part of the row `count` rows later, which the next call reads.
        for (int64_t k = 0; k < size * kBytes; k += kCacheLine) prefetch(from + count * src_stride_ + k);
        normalise(to + i * to_stride + offset, from, size, factors[i], weights_,
                  streams_ ? Stores::kStreaming : Stores::kOrdinary);
      }
    }
    for (int64_t i = 0; i < count && !is_direct_; ++i) {
      copy(out + i * dst_stride_, scratch_ + i * to_stride, p_.rows.row_size, stores_);
    }
  }

 private:
  static constexpr int64_t kMaxRows = 64, kBytes = sizeof(T);
  static constexpr int64_t kMaxBytes = 65536;  // of the rows that are normed at a time, if they fit: a part of the L2

  const RmsNormParams& p_;
  char* const scratch_;
  const Stores stores_;
  SumsOfSquares<T> sums_of_squares_;
  NormWeights<T> weights_;
  const bool streams_;  // normalise() writes to `out` with streaming stores
  const bool is_direct_;
  const int64_t src_stride_, dst_stride_;
};

template <FloatElement T>
void norm_rows(const RmsNormParams& p, int64_t begin, int64_t end, char* scratch, Stores stores) {
  RowNorm<T> norm(p, scratch, stores);
  RowWalker row(p.rows, begin);
  for (int64_t i = begin; i < end;) {
    const int64_t left = end - i, count = left < norm.max_rows() ? left : norm.max_rows();
    norm(p.out + row.dst(), p.input + row.src(), count);
    i += count;
    for (int64_t k = 0; k < count; ++k) row.next();
  }
  finish(stores);
}

}  // namespace

template <>
void run<kIsa>(const QkNormRopeCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  const int64_t key_bytes = KeyBuffer<float, float>::row_bytes(p);
  char* scratch = scratch_of_thread(scratch_bytes(p.query.source.head_bytes) + scratch_bytes(key_bytes));
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_float(p.dtype, [&]<FloatElement T>() {
    const bool has_float_table = p.rope.is_on && p.rope.table_dtype != p.dtype;
    if (has_float_table) run_tokens<T, float>(p, begin, end, scratch, stores);
    else run_tokens<T, T>(p, begin, end, scratch, stores);
  });
}

template <>
void run<kIsa>(const RmsNormParams& p, int64_t begin, int64_t end, Stores stores) {
  char* scratch = scratch_of_thread(kScratchBytes);
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_float(p.dtype, [&]<FloatElement T>() { norm_rows<T>(p, begin, end, scratch, stores); });
}

template <>
void run<kIsa>(const RotaryEmbeddingParams& p, int64_t begin, int64_t end, Stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  const RotateRows rotate_rows = rotate_rows_for(p.dtype, p.rope.table_dtype);
  for (int64_t token = begin; token < end; ++token) {
    const char* table_row = p.rope.cos_sin_cache.row(p.rope.positions.at(token));
    const auto rotate = [&](const TokenHeads& heads, int64_t num_heads) {
      rotate_rows(heads.row(token), num_heads, heads.stride_head_bytes, table_row, p.rope.num_pairs(), p.rope.is_neox);
    };
    rotate(p.query, p.num_query_heads);
    if (p.key.data != nullptr) rotate(p.key, p.num_key_heads);
  }
}

}  // namespace multikv::cpu
