#include <cstdlib>

#include "cpu/isa/cache/flash_writer.h"
#include "cpu/isa/cache/packed_writer.h"
#include "cpu/isa/cache/strided.h"
#include "cpu/isa/codec/rms_norm.h"
#include "params/norm_rope_params.h"

namespace multikv::cpu {
namespace {

constexpr int64_t kScratchBytes = 16384;

// Memory of a thread: on the stack, unless a single row needs more than kScratchBytes.
class Scratch {
 public:
  explicit Scratch(int64_t num_bytes)
      : heap_(num_bytes <= kScratchBytes
                  ? nullptr
                  : static_cast<char*>(std::aligned_alloc(kCacheLine, (num_bytes + kCacheLine - 1) & -kCacheLine))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { std::free(heap_); }

  char* data() { return heap_ == nullptr ? stack_ : heap_; }

 private:
  char* heap_;
  alignas(kCacheLine) char stack_[kScratchBytes];
};

// The number of rows that fit into kScratchBytes, but at least one and at most `most`.
int64_t rows_of_scratch(int64_t row_bytes, int64_t most) {
  const int64_t rows = kScratchBytes / row_bytes;
  return rows < 1 ? 1 : rows < most ? rows : most;
}

// The cosines and sines of a token, in pieces of at most RopeTable::kMaxPairs pairs.
template <FloatElement T, FloatElement Table>
class TokenTable {
 public:
  explicit TokenTable(const multikv::Rope& rope) : rope_(rope) {}

  // Returns the pairs begin .. begin + count - 1.
  const RopeTable& load(int64_t token, int64_t begin, int64_t count) {
    if (token == token_ && begin == begin_) return table_;
    token_ = token, begin_ = begin;
    const int64_t sines = rope_.num_pairs() * kBytes;
    const RopeOrder order = Rope<T, Table>::order(rope_.is_neox);
    const char* row = rope_.section.is_given ? gather(token, begin, count)
                                             : rope_.cos_sin_cache.row(rope_.positions.at(token)) + begin * kBytes;
    fill<Table>(table_.cos, row, count, order);
    fill<Table>(table_.sin, rope_.section.is_given ? row + sizeof gathered_ / 2 : row + sines, count, order);
    return table_;
  }

 private:
  static constexpr int64_t kBytes = sizeof(Table);

  // Gathers cosines and sines from the rows of the three positions.
  const char* gather(int64_t token, int64_t begin, int64_t count) {
    const char* rows[3];
    for (int row = 0; row < 3; ++row) rows[row] = rope_.cos_sin_cache.row(rope_.positions.at(row, token));
    for (int64_t i = 0; i < count; ++i) {
      const char* row = rows[rope_.section.row_of(begin + i)];
      store_as(gathered_[0], i, load_as<Table>(row, begin + i));
      store_as(gathered_[1], i, load_as<Table>(row, rope_.num_pairs() + begin + i));
    }
    return gathered_[0];
  }

  const multikv::Rope& rope_;
  int64_t token_ = -1, begin_ = 0;
  RopeTable table_;
  char gathered_[2][RopeTable::kMaxPairs * sizeof(Table)];
};

// Where neighbouring heads of a token are written.
struct HeadsOut {
  char* data;
  int64_t stride_bytes;

  char* head(int64_t i) const { return data + i * stride_bytes; }
};

// Norms and rotates heads.
template <FloatElement T, FloatElement Table>
class HeadProcessor {
 public:
  static constexpr int64_t kMaxHeads = 64;  // that are processed at a time

  explicit HeadProcessor(const QkNormRopeCacheParams& p)
      : p_(p), table_(p.rope), query_weights_(p.query.weight, p.norm.weight_bias),
        key_weights_(p.key.weight, p.norm.weight_bias) {}

  // Processes the heads first .. first + count - 1 of a token, with count <= kMaxHeads. The output may be the source.
  // Of the groups of heads of a token, that with first == 0 comes first.
  void operator()(bool is_key, int64_t token, int64_t first, int64_t count, const HeadsOut& out) {
    const NormRopeHeads& heads = is_key ? p_.key : p_.query;
    const NormRows source = {heads.source.head(token, first), count, heads.source.head_bytes};
    const NormRows rotated = {out.data, count, out.stride_bytes};
    switch (p_.order) {
      case NormOrder::kNone: return rotate(out, source, token);
      case NormOrder::kHead:
        find_factors(source);
        norm(out, source, is_key, 0);
        return rotate(out, rotated, token);
      case NormOrder::kAfterRope:
        rotate(out, source, token);
        find_factors(rotated);
        return norm(out, rotated, is_key, 0);
      case NormOrder::kAllHeads:
        if (first == 0) find_factor_of_all(heads, token);
        norm(out, source, is_key, first);
        return rotate(out, rotated, token);
    }
  }

 private:
  static constexpr int64_t kBytes = sizeof(T);

  void find_factors(const NormRows& rows) {
    sums_of_squares_(factors_, rows, p_.head_size);
    for (int64_t i = 0; i < rows.num_rows; ++i) factors_[i] = reciprocal_root(p_.norm, factors_[i], p_.head_size);
  }

  void find_factor_of_all(const NormRopeHeads& heads, int64_t token) {
    const int64_t size = heads.num_heads * p_.head_size;
    sums_of_squares_(factors_, {heads.source.head(token, 0), 1, 0}, size);
    const float factor = reciprocal_root(p_.norm, factors_[0], size);
    for (float& each : factors_) each = factor;
  }

  // Norms the rows, of which row 0 is head `first`. In every other order than kAllHeads, all heads have the weights of
  // head 0.
  void norm(const HeadsOut& out, const NormRows& rows, bool is_key, int64_t first) {
    NormWeights<T>& weights = is_key ? key_weights_ : query_weights_;
    const int64_t size = p_.head_size, step = p_.order == NormOrder::kAllHeads ? size : 0;
    for (int64_t begin = 0; begin < size; begin += weights.kMaxElements) {
      const int64_t count = size - begin < weights.kMaxElements ? size - begin : weights.kMaxElements;
      for (int64_t i = 0; i < rows.num_rows; ++i) {
        weights.load((first + i) * step + begin, count);
        normalise(out.head(i) + begin * kBytes, rows.row(i) + begin * kBytes, count, factors_[i], weights);
      }
    }
  }

  void rotate(const HeadsOut& out, const NormRows& rows, int64_t token) {
    const int64_t num_pairs = p_.rope.num_pairs(), offset = p_.rope.offset;
    if (out.data != rows.data) {
      for (int64_t i = 0; i < rows.num_rows; ++i) copy_unrotated(out.head(i), rows.row(i));
    }
    for (int64_t begin = 0; begin < num_pairs; begin += RopeTable::kMaxPairs) {
      const int64_t left = num_pairs - begin, count = left < RopeTable::kMaxPairs ? left : RopeTable::kMaxPairs;
      const RopeTable& table = table_.load(token, begin, count);
      for (int64_t i = 0; i < rows.num_rows; ++i) {
        Rope<T, Table>::rotate_part(out.head(i) + offset * kBytes, rows.row(i) + offset * kBytes, begin, count,
                                    num_pairs, p_.rope.is_neox, table);
      }
    }
  }

  void copy_unrotated(char* to, const char* from) const {
    const int64_t begin = p_.rope.offset * kBytes, end = (p_.rope.offset + p_.rope.size) * kBytes;
    const int64_t size = p_.head_size * kBytes;
    if (p_.rope.size == 0) return copy(to, from, size, Stores::kOrdinary);
    if (begin > 0) copy(to, from, begin, Stores::kOrdinary);
    if (end < size) copy(to + end, from + end, size - end, Stores::kOrdinary);
  }

  const QkNormRopeCacheParams& p_;
  TokenTable<T, Table> table_;
  SumsOfSquares<T> sums_of_squares_;
  NormWeights<T> query_weights_, key_weights_;
  float factors_[kMaxHeads];
};

// Processes the queries of tokens, and writes them to query.out.
template <FloatElement T, FloatElement Table>
class QueryWriter {
 public:
  QueryWriter(const QkNormRopeCacheParams& p, HeadProcessor<T, Table>& process, Stores stores)
      : p_(p), process_(process), scratch_(p.query.source.head_bytes),
        quantise_(p.query_element, p.dtype,
                  {.data = p.query_scale,
                   .stride = 0,
                   .num_scales = 1,
                   .num_elements = p.slots.num_tokens * p.query.num_heads * p.head_size}),
        max_heads_(rows_of_scratch(p.query.source.head_bytes, process.kMaxHeads)),
        is_direct_(!quantise_ && (stores == Stores::kOrdinary || p.query.out.data == p.query.source.data)),
        stores_(stores) {}

  void write(int64_t token) {
    const NormRopeHeads& query = p_.query;
    for (int64_t first = 0; first < query.num_heads; first += max_heads_) {
      const int64_t left = query.num_heads - first, count = left < max_heads_ ? left : max_heads_;
      char* to = query.out.head(token, first);
      if (is_direct_) {
        process_(false, token, first, count, {to, query.out.stride_head_bytes});
        continue;
      }
      process_(false, token, first, count, {scratch_.data(), query.source.head_bytes});
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
      return quantise_(to, scratch_.data(), rows, *p_.query_scale, stores_);
    }
    for (int64_t row = 0; row < num_rows; ++row) {
      copy(to + row * out.stride_head_bytes, scratch_.data() + row * from_stride, heads * out.head_bytes, stores_);
    }
  }

  const QkNormRopeCacheParams& p_;
  HeadProcessor<T, Table>& process_;
  Scratch scratch_;
  const Quantiser quantise_;
  const int64_t max_heads_;
  const bool is_direct_;
  const Stores stores_;
};

// Processes the keys of tokens into scratch memory, from where they go to key.out and to the cache.
template <FloatElement T, FloatElement Table>
class KeyBuffer {
 public:
  KeyBuffer(const QkNormRopeCacheParams& p, HeadProcessor<T, Table>& process)
      : p_(p), process_(process), row_bytes_(p.key.num_heads * p.key.source.head_bytes), scratch_(row_bytes_) {}

  int64_t max_tokens() const { return rows_of_scratch(row_bytes_, kMaxTokens); }
  TokenHeads heads() { return {scratch_.data(), row_bytes_, p_.key.source.head_bytes, p_.key.source.head_bytes}; }

  // Processes the keys of a token into row `row` of the scratch memory.
  void fill(int64_t token, int64_t row) {
    const NormRopeHeads& key = p_.key;
    char* to = scratch_.data() + row * row_bytes_;
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
  Scratch scratch_;
};

// The write of keys from `keys` and of values, as an op of family reshape_and_cache.
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

// Writes the tokens [begin, end). Key writers take their tokens from `keys`, which holds a few tokens.
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
void run_tokens(const QkNormRopeCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  HeadProcessor<T, Table> process(p);
  QueryWriter<T, Table> queries(p, process, stores);
  KeyBuffer<T, Table> keys(p, process);
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

// Norms the rows [begin, end). If stores are streaming, a row is normed in scratch memory first.
template <FloatElement T>
void norm_rows(const RmsNormParams& p, int64_t begin, int64_t end, Stores stores) {
  constexpr int64_t kMaxRows = 64, kBytes = sizeof(T);
  SumsOfSquares<T> sums_of_squares;
  NormWeights<T> weights(p.weight, p.norm.weight_bias);
  RowWalker row(p.rows, begin);
  const bool is_direct = stores == Stores::kOrdinary || p.input == p.out || p.rows.row_size > kScratchBytes;
  Scratch scratch(0);
  float factors[kMaxRows];
  for (int64_t i = begin; i < end;) {
    const int64_t most = p.rows.num_dims == 1 ? kMaxRows : 1, count = end - i < most ? end - i : most;
    sums_of_squares(factors, {p.input + row.src(), count, p.rows.num_dims == 1 ? p.rows.src_stride[0] : 0},
                    p.row_elements);
    for (int64_t j = 0; j < count; ++j, row.next()) {
      const float factor = reciprocal_root(p.norm, factors[j], p.row_elements);
      const char* from = p.input + row.src();
      char* to = is_direct ? p.out + row.dst() : scratch.data();
      for (int64_t first = 0; first < p.row_elements; first += weights.kMaxElements) {
        const int64_t left = p.row_elements - first, size = left < weights.kMaxElements ? left : weights.kMaxElements;
        weights.load(first, size);
        normalise(to + first * kBytes, from + first * kBytes, size, factor, weights);
      }
      if (!is_direct) copy(p.out + row.dst(), to, p.rows.row_size, stores);
    }
    i += count;
  }
  finish(stores);
}

}  // namespace

template <>
void run<kIsa>(const QkNormRopeCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_float(p.dtype, [&]<FloatElement T>() {
    const bool has_float_table = p.rope.is_on && p.rope.table_dtype != p.dtype;
    if (has_float_table) run_tokens<T, float>(p, begin, end, stores);
    else run_tokens<T, T>(p, begin, end, stores);
  });
}

template <>
void run<kIsa>(const RmsNormParams& p, int64_t begin, int64_t end, Stores stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_float(p.dtype, [&]<FloatElement T>() { norm_rows<T>(p, begin, end, stores); });
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
