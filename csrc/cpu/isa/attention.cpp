#include "cpu/isa/attention/granule.h"
#include "cpu/isa/attention/merge.h"
#include "cpu/isa/attention/state.h"

namespace multikv::cpu {
namespace {

constexpr int64_t kGranule = AttentionJob::kGranule;
constexpr int64_t kRowBlock = 4;  // query rows that the products process together

RowSpan intersection(RowSpan a, RowSpan b) {
  return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
}
// Returns the smallest span that contains both spans.
RowSpan hull(RowSpan a, RowSpan b) {
  if (a.is_empty()) return b;
  if (b.is_empty()) return a;
  return {a.begin < b.begin ? a.begin : b.begin, a.end > b.end ? a.end : b.end};
}

// Computes one piece of a job. Reader reads the elements of the caches.
template <class Reader>
class PieceKernel {
 public:
  explicit PieceKernel(const AttentionPiece& piece)
      : piece_(piece), p_(*piece.params), job_(piece.job), sizes_(AttentionSizes::of(p_, job_)) {
    const AttentionScratch scratch = AttentionScratch::of(p_, job_);
    const auto floats = [&](int64_t at) { return reinterpret_cast<float*>(piece.scratch + at); };
    query_ = floats(scratch.query);
    state_ = floats(scratch.state);
    partial_ = floats(scratch.partial);
    scores_ = {floats(scratch.scores), kGranule};
    tile_ = floats(scratch.tile);
    slots_ = {reinterpret_cast<const char**>(piece.scratch + scratch.keys),
              reinterpret_cast<const char**>(piece.scratch + scratch.values)};
  }

  void run() {
    read_queries();
    const bool is_joined = piece_.is_first();
    for (int64_t i = 0; is_joined && i < job_.num_heads * sizes_.rows; ++i) state(0, i).set_empty();
    for (int64_t granule = piece_.begin; granule < piece_.end; ++granule) {
      granule_ = granule;
      seen_ = {0, 0};
      for (int64_t token = 0; token < job_.num_tokens; ++token) seen_ = hull(seen_, visible_to(token).span);
      find_slots(p_, job_, granule, seen_, slots_);
      for (int64_t head = 0; head < job_.num_heads; ++head) {
        compute_head(head);
        for (int64_t row = 0; row < sizes_.rows; ++row) {
          if (is_joined) join(state(head, row), partial(row));
          else store_partial(granule - piece_.begin, head, row);
        }
      }
    }
    if (piece_.is_whole()) finish();
    else if (is_joined) std::memcpy(piece_.partials, state_, sizes_.partial_floats(job_.num_heads) * sizeof(float));
  }

 private:
  // Whether the products read rows directly from the cache, and not from a decoded copy. float16 and bfloat16 rows are
  // read directly if there are few query rows, and float32 rows for any number of query rows. Codes of fp8 take so many
  // instructions that a loop that only decodes them is faster.
  bool reads_directly(int64_t head_size) const {
    const bool is_few = sizes_.rows <= kRowBlock && Reader::kBytes > 1;
    const bool is_cheap = is_few || std::is_same_v<Reader, cpu::Reader<Element::kFloat32>>;
    return !p_.is_packed && head_size % kLanes == 0 && is_cheap;
  }

  Partial state(int64_t head, int64_t row) const {
    return {state_ + (head * sizes_.rows + row) * sizes_.partial_size(), sizes_.value_size};
  }
  Partial partial(int64_t row) const { return {partial_ + row * sizes_.partial_size(), sizes_.value_size}; }
  void store_partial(int64_t index, int64_t head, int64_t row) const {
    float* to = piece_.partials + index * sizes_.partial_floats(job_.num_heads) +
                (head * sizes_.rows + row) * sizes_.partial_size();
    std::memcpy(to, partial(row).data, sizes_.partial_size() * sizeof(float));
  }

  // Converts the queries of all heads to float32. Rows are padded with zeros.
  void read_queries() const {
    for (int64_t head = 0; head < job_.num_heads; ++head) {
      for (int64_t row = 0; row < sizes_.rows; ++row) {
        const char* from = p_.query.head(query_row(row), query_head(head, row));
        float* to = queries(head).row(row);
        with_reader(element_of(p_.dtype),
                    [&]<class QueryReader>() { read_elements<QueryReader>(to, from, p_.head_size); });
        for (int64_t d = p_.head_size; d < sizes_.key_size; ++d) to[d] = 0;
      }
    }
  }
  FloatRows queries(int64_t head) const { return {query_ + head * sizes_.rows * sizes_.key_size, sizes_.key_size}; }
  int64_t query_row(int64_t row) const { return job_.first_row + row / sizes_.group; }
  int64_t query_head(int64_t head, int64_t row) const {
    return (job_.first_head + head) * sizes_.group + row % sizes_.group;
  }

  // The keys of the current granule that a token sees.
  VisibleKeys visible_to(int64_t token) const {
    const int64_t first = granule_ * kGranule, p = job_.first_position + token;
    if (p < 0) return {{0, 0}, 0, 0};
    const AttentionOptions& options = p_.options;
    const bool is_bounded = options.is_causal && options.query_mask == nullptr;
    const int64_t begin = options.window_left < 0 || p < options.window_left ? 0 : p - options.window_left;
    const int64_t end = is_bounded && p + 1 < job_.length ? p + 1 : job_.length;
    const RowSpan span = intersection({begin - first, end - first}, {0, kGranule});
    if (options.query_mask == nullptr || span.is_empty()) return {span, kGranule, 0};
    // Bit 0 of the mask stands for key mask_base, which may lie before the granule, or before the sequence.
    const auto mask = static_cast<uint64_t>(options.query_mask[job_.first_row + token]);
    const int64_t at = job_.mask_base - first;
    if (at >= 0) return {span, at, mask};
    return {span, 0, -at < 64 ? mask >> -at : 0};
  }

  template <class With>
  void for_each_row_block(const With& with) const {
    for (int64_t row = 0; row < sizes_.rows; row += kRowBlock) {
      const int64_t count = sizes_.rows - row < kRowBlock ? sizes_.rows - row : kRowBlock;
      with(row, count);
    }
  }

  void compute_head(int64_t head) {
    score_head(head);
    const CacheView& keys = p_.key_view();
    const int64_t kv_head = job_.first_head + head;
    const float k_scale = keys.codec.is_float() ? 1 : *keys.scale_of(kv_head);
    for (int64_t row = 0; row < sizes_.rows; ++row) {
      const int64_t token = row / sizes_.group;
      const float* slopes = p_.options.alibi_slopes;
      const Scoring scoring{p_.options.scale * k_scale, p_.options.softcap,
                            slopes == nullptr ? 0 : slopes[query_head(head, row)], slopes != nullptr,
                            job_.first_position + token - granule_ * kGranule};
      const WeightSum sum = weigh(scores_.row(row), visible_to(token), scoring);
      const Partial result = partial(row);
      result.set_empty();
      result.largest() = sum.largest;
      result.sum() = sum.sum;
    }
    total_head(head);
  }

  // Products of all queries of a head with the keys that some row sees.
  void score_head(int64_t head) {
    const int64_t kv_head = job_.first_head + head;
    const bool is_direct = reads_directly(p_.head_size);
    const Tile tile{tile_, sizes_.key_size};
    for (int64_t begin = seen_.begin; begin < seen_.end; begin += kTile) {
      const RowSpan span{begin, begin + kTile < seen_.end ? begin + kTile : seen_.end};
      if (is_direct) {
        const CachedRows rows{slots_.keys, kv_head * p_.key.stride_head_bytes};
        score_tile<Reader>(head, rows, span, [&] [[gnu::always_inline]] (int64_t j, int64_t count) {
          prefetch_after_keys(head, j, count);
        });
        continue;
      }
      if (p_.is_packed) {
        const CachedRows rows{slots_.keys, kv_head * p_.packed_key.stride_head_bytes};
        decode_packed_keys<Reader>(p_.packed_key, rows, span, p_.head_size, tile);
      } else {
        decode_rows<Reader>({slots_.keys, kv_head * p_.key.stride_head_bytes}, span, seen_.end, p_.head_size, tile);
      }
      score_tile<cpu::Reader<Element::kFloat32>>(head, tile.rows(begin), span, [](int64_t, int64_t) {});
    }
  }

  template <class RowReader, RowAddress Rows, class Visit>
  void score_tile(int64_t head, const Rows& rows, RowSpan span, const Visit& visit) const {
    for_each_row_block([&](int64_t row, int64_t count) {
      RowSpan seen{0, 0};
      for (int64_t i = row; i < row + count; ++i) seen = hull(seen, visible_to(i / sizes_.group).span);
      seen = intersection(seen, span);
      with_rows(count, [&]<int kRows>() {
        score_keys<RowReader, kRows>(rows, seen, sizes_.key_size, queries(head).from(row), scores_.from(row), visit);
      });
    });
  }

  // Sums of the weighted values for all rows of a head.
  void total_head(int64_t head) {
    const int64_t kv_head = job_.first_head + head;
    const bool is_direct = reads_directly(p_.value_size);
    const Tile tile{tile_, sizes_.value_size};
    for (int64_t begin = seen_.begin; begin < seen_.end; begin += kTile) {
      const RowSpan span{begin, begin + kTile < seen_.end ? begin + kTile : seen_.end};
      if (is_direct) {
        const CachedRows rows{slots_.values, kv_head * p_.value.stride_head_bytes};
        total_tile<Reader>(rows, span, [&] [[gnu::always_inline]] (int64_t j, int64_t offset, int64_t bytes) {
          prefetch_after_values(head, j, offset, bytes);
        });
        continue;
      }
      if (p_.is_packed) {
        const CachedRows rows{slots_.values, kv_head * p_.packed_value.stride_head_bytes};
        decode_packed_values<Reader>(p_.packed_value, rows, span, p_.value_size, tile);
      } else {
        decode_rows<Reader>({slots_.values, kv_head * p_.value.stride_head_bytes}, span, seen_.end, p_.value_size,
                            tile);
      }
      total_tile<cpu::Reader<Element::kFloat32>>(tile.rows(begin), span, [](int64_t, int64_t, int64_t) {});
    }
  }

  // Query rows are processed in groups of up to kRowBlock. A value that only some rows of a group see is added to each
  // of these rows separately: an invisible value is never multiplied by 0, because it may be NaN.
  template <class RowReader, RowAddress Rows, class Visit>
  void total_tile(const Rows& rows, RowSpan span, const Visit& visit) const {
    const FloatRows totals{partial_, sizes_.partial_size()};
    for_each_row_block([&](int64_t row, int64_t count) {
      RowSpan common = span;
      bool has_mask = false;
      for (int64_t i = row; i < row + count; ++i) {
        const VisibleKeys keys = visible_to(i / sizes_.group);
        common = intersection(common, keys.span);
        has_mask |= keys.has_mask();
      }
      if (has_mask || common.is_empty()) common = {span.begin, span.begin};
      const auto add_alone = [&](RowSpan within) {
        for (int64_t i = row; !within.is_empty() && i < row + count; ++i) {
          visible_to(i / sizes_.group).for_each_run(within, [&](RowSpan run) {
            add_values<RowReader, 1>(rows, run, sizes_.value_size, scores_.from(i), totals.from(i), visit);
          });
        }
      };
      add_alone({span.begin, common.begin});
      if (!common.is_empty())
        with_rows(count, [&]<int kRows>() {
          add_values<RowReader, kRows>(rows, common, sizes_.value_size, scores_.from(row), totals.from(row), visit);
        });
      add_alone({common.end, span.end});
    });
  }

  // The products read the keys of a head, then its values, then the keys of the next head, and so on. These two
  // functions prefetch the row that is read kTile rows later: one for the loop over keys, the other for the loop over
  // values. The functions are inlined, because GCC drops calls of functions that do nothing but prefetch.
  [[gnu::always_inline]] void prefetch_after_keys(int64_t head, int64_t j, int64_t count) const {
    const int64_t kv_head = job_.first_head + head;
    for (int64_t ahead = j + kTile; ahead < j + kTile + count; ++ahead) {
      if (ahead < seen_.end) {
        prefetch_row(slots_.keys[ahead] + kv_head * p_.key.stride_head_bytes, p_.head_size * Reader::kBytes);
      } else if (ahead - seen_.end < seen_.end - seen_.begin) {
        const int64_t value = seen_.begin + ahead - seen_.end;
        prefetch_row(slots_.values[value] + kv_head * p_.value.stride_head_bytes, p_.value_size * Reader::kBytes);
      }
    }
  }
  [[gnu::always_inline]] void prefetch_after_values(int64_t head, int64_t j, int64_t offset, int64_t bytes) const {
    const int64_t kv_head = job_.first_head + head, ahead = j + kTile;
    const char* row = nullptr;
    if (ahead < seen_.end) row = slots_.values[ahead] + kv_head * p_.value.stride_head_bytes;
    else if (head + 1 < job_.num_heads && ahead - seen_.end < seen_.end - seen_.begin) {
      row = slots_.keys[seen_.begin + ahead - seen_.end] + (kv_head + 1) * p_.key.stride_head_bytes;
    }
    if (row != nullptr && offset % kCacheLine == 0) prefetch_row(row + offset, bytes);
  }

  void finish() const {
    for (int64_t head = 0; head < job_.num_heads; ++head) {
      for (int64_t row = 0; row < sizes_.rows; ++row) {
        finish_row(p_, state(head, row), query_row(row), query_head(head, row));
      }
    }
  }

  const AttentionPiece& piece_;
  const PagedAttentionParams& p_;
  const AttentionJob& job_;
  AttentionSizes sizes_;
  float *query_, *state_, *partial_, *tile_;
  FloatRows scores_;
  SlotAddresses slots_;
  int64_t granule_ = 0;
  RowSpan seen_{0, 0};  // from the first to the last key of the granule that some row sees
};

// Joins the partial results of row `index` of a job, where rows of all kv heads are counted together.
void join_row(const AttentionJoin& join_of, int64_t index) {
  const PagedAttentionParams& p = *join_of.params;
  const AttentionSizes sizes = AttentionSizes::of(p, join_of.job);
  const int64_t at = index * sizes.partial_size();
  const Partial result{join_of.pieces[0].partials + at, sizes.value_size};
  for (int64_t i = 1; i < join_of.num_pieces; ++i) {
    const AttentionPiece& piece = join_of.pieces[i];
    for (int64_t n = 0; n < piece.num_partials(); ++n) {
      join(result, {piece.partials + n * sizes.partial_floats(join_of.job.num_heads) + at, sizes.value_size});
    }
  }
  const int64_t head = join_of.job.first_head + index / sizes.rows, row = index % sizes.rows;
  finish_row(p, result, join_of.job.first_row + row / sizes.group, head * sizes.group + row % sizes.group);
}

}  // namespace

template <>
void run<kIsa>(const AttentionPiece& piece, int64_t, int64_t, Stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_reader(piece.params->codec().element, [&]<class Reader>() { PieceKernel<Reader>(piece).run(); });
}

template <>
void run<kIsa>(const AttentionJoin& join_of, int64_t begin, int64_t end, Stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  for (int64_t i = begin; i < end; ++i) join_row(join_of, i);
}

template <>
void run<kIsa>(const MergeAttnStatesParams& p, int64_t begin, int64_t end, Stores) {
  [[maybe_unused]] const IeeeSubnormals subnormals;
  with_float(p.dtype, [&]<FloatElement T>() {
    for (int64_t i = begin; i < end; ++i) merge_head<T>(p, i / p.num_heads, i % p.num_heads);
  });
}

}  // namespace multikv::cpu
