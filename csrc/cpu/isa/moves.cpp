#include "cpu/isa/cache/slot_copies.h"
#include "params/moves_params.h"

namespace multikv::cpu {
namespace {

// Copies rows of one size, in order. Rows are collected until there are 2 * ahead_ of them. Then the first half of them
// is copied, each while the row that was added ahead_ rows later is prefetched.
class PrefetchedCopies {
 public:
  PrefetchedCopies(int64_t row_bytes, Stores stores)
      : row_bytes_(row_bytes), ahead_(kBytesAhead / row_bytes < kMostAhead ? kBytesAhead / row_bytes + 1 : kMostAhead),
        stores_(stores) {}
  ~PrefetchedCopies() {
    const int64_t with_next = count_ > ahead_ ? count_ - ahead_ : 0;
    copy_rows(with_next);
    for (int64_t i = with_next; i < count_; ++i) copy(rows_[i].dst, rows_[i].src, row_bytes_, stores_);
  }
  PrefetchedCopies(const PrefetchedCopies&) = delete;

  void add(const PlanePair& row) {
    rows_[count_] = row;
    dst_bits_ |= reinterpret_cast<intptr_t>(row.dst);
    if (++count_ < 2 * ahead_) return;
    copy_rows(ahead_);
    std::memcpy(rows_, rows_ + ahead_, ahead_ * sizeof(PlanePair));
    count_ = ahead_;
  }

 private:
  static constexpr int64_t kBytesAhead = 8192, kMostAhead = 64;

  void copy_rows(int64_t count) const {
    const bool are_lines = row_bytes_ <= kBytesAhead && are_whole_cache_lines(dst_bits_ | row_bytes_);
    if (stores_ == Stores::kStreaming && are_lines) return stream_rows(count);
    for (int64_t i = 0; i < count; ++i) {
      copy(rows_[i].dst, rows_[i].src, row_bytes_, stores_, rows_[i + ahead_].src);
    }
  }

  // Does the same as copy() in fewer instructions, so that more rows are in flight at a time: the TLB misses of rows at
  // random addresses overlap.
  void stream_rows(int64_t count) const {
    const int64_t row_bytes = row_bytes_;
    for (int64_t i = 0; i < count; ++i) {
      const PlanePair row = rows_[i];
      const char* next = rows_[i + ahead_].src;
      for (int64_t k = 0; k < row_bytes; k += kCacheLine) {
        prefetch(next + k);
#pragma GCC unroll 4
        for (int64_t j = k; j < k + kCacheLine; j += kWidth) stream(row.dst + j, load(row.src + j));
      }
    }
  }

  static constexpr int64_t kWidth = sizeof(Bytes);
  const int64_t row_bytes_, ahead_;
  const Stores stores_;
  int64_t count_ = 0;
  intptr_t dst_bits_ = 0;  // the bitwise or of the addresses that rows are written to
  PlanePair rows_[2 * kMostAhead];
};

// Copies the units [begin, end) of a plane.
template <std::invocable<int64_t> SlotsOf>
void copy_units(const PlaneCopies& copies, const CopyLayout& layout, const StridedRows& rows, const PlanePair& plane,
                const SlotsOf& slots_of, int64_t begin, int64_t end, Stores stores) {
  PrefetchedCopies copy(rows.row_size, stores);
  for (UnitRows row(copies, layout, rows, plane, slots_of, begin, end); !row.is_done(); row.next()) {
    copy.add({row.src(), row.dst()});
  }
}

// The slots of tokens that are packed or unpacked.
struct PackedSlots {
  const PackLayersParams& p;

  SlotPair of(int64_t token) const {
    const BlockOffset at = split_slot(p.cache_blocks(), token);
    const int64_t block = p.block_ids.indices.at(at.block);
    const int64_t slot = block < 0 ? -1 : block * p.cache_blocks().block_size.signed_value() + at.offset;
    return p.is_unpack ? SlotPair{token, slot} : SlotPair{slot, token};
  }
};

// Copies all tokens of a plane as if all were read before any is written: a few neighbouring bytes of every token at a
// time, through a buffer.
struct OverlappingCopy {
  static constexpr int64_t kBufferBytes = 64 << 10;
  const MoveTokensParams& p;
  const CopyLayout& layout;
  const PlanePair& plane;
  char* buffer;

  void copy_all() const {
    const int64_t part = kBufferBytes / p.num_tokens();  // at least 16, because there are at most 4096 tokens
    RowWalker offsets(layout.token, 0);
    for (int64_t row = 0; row < layout.token.num_rows; ++row, offsets.next()) {
      for (int64_t column = 0; column < layout.token.row_size; column += part) {
        const int64_t left = layout.token.row_size - column;
        copy_column(offsets.src() + column, offsets.dst() + column, left < part ? left : part);
      }
    }
  }

 private:
  template <class Body>
  void for_each_pair(const Body& body) const {
    for (int64_t i = 0; i < p.num_tokens(); ++i) {
      const SlotPair slots{p.src_slots.indices.at(i), p.dst_slots.indices.at(i)};
      if (slots.src >= 0 && slots.dst >= 0) body(i, slots);
    }
  }

  void copy_column(int64_t src_offset, int64_t dst_offset, int64_t num_bytes) const {
    for_each_pair([&](int64_t i, const SlotPair& slots) {
      const int64_t at = layout.src.offset_of(split_slot(p.copies.src_blocks, slots.src));
      copy(buffer + i * num_bytes, plane.src + at + src_offset, num_bytes, Stores::kOrdinary);
    });
    for_each_pair([&](int64_t i, const SlotPair& slots) {
      const int64_t at = layout.dst.offset_of(split_slot(p.copies.dst_blocks, slots.dst));
      copy(plane.dst + at + dst_offset, buffer + i * num_bytes, num_bytes, Stores::kOrdinary);
    });
  }
};

// The heads of a plane that keep the same positions.
struct KeptHeads {
  char* data;    // the first head of slot 0
  Indices keep;  // the kept positions
  int64_t num_heads;
};

// Moves what one sequence keeps in some heads. Streaming stores are right although the op reads what it writes: a
// position is read before anything is written to it.
void compact(const CompactCacheParams& p, const CompactLayout& layout, const KeptHeads& heads, int64_t s,
             Stores stores) {
  const KeptTokens& kept = p.kept;
  const auto slot = [&](int64_t position) {
    const BlockOffset at = split_slot(p.blocks, position);
    return heads.data + layout.slots.offset_of({kept.block_table.at(s, at.block), at.offset});
  };
  const bool is_one_row = layout.stride_head_bytes == layout.head_bytes;
  const int64_t num_rows = is_one_row ? 1 : heads.num_heads;
  PrefetchedCopies copy(is_one_row ? heads.num_heads * layout.head_bytes : layout.head_bytes, stores);
  const int64_t begin = kept.keep_offsets.at(s), start = kept.dst_start.is_given() ? kept.dst_start.at(s) : 0;
  for (int64_t m = begin; m < kept.keep_offsets.at(s + 1); ++m) {
    const int64_t from = heads.keep.at(m), to = start + m - begin;
    if (from == to) continue;
    const char* src = slot(from);
    char* dst = slot(to);
    for (int64_t row = 0; row < num_rows; ++row) {
      copy.add({src + row * layout.stride_head_bytes, dst + row * layout.stride_head_bytes});
    }
  }
}

}  // namespace

template <>
void run<kIsa>(const PackLayersParams& p, int64_t begin, int64_t end, Stores stores) {
  const auto& planes = p.copies.planes;
  const PackedSlots slots{p};
  const int64_t num_units = p.num_units(), items = num_units + p.num_last_tokens();
  for_each_plane(
      planes.groups, items, begin, end, [&](const auto& group, const PlanePair& plane, int64_t i, int64_t j) {
        const auto unit_slots = [&](int64_t unit) { return slots.of(unit * p.tokens_per_unit); };
        const auto last_slots = [&](int64_t i) { return slots.of(num_units * p.tokens_per_unit + i - num_units); };
        const int64_t middle = j < num_units ? j : num_units;
        if (i < middle) copy_units(p.copies, group.layout, group.layout.unit, plane, unit_slots, i, middle, stores);
        const int64_t first = i > num_units ? i : num_units;
        if (first < j) copy_units(p.copies, group.layout, group.layout.token, plane, last_slots, first, j, stores);
      });
  finish(stores);
}

template <>
void run<kIsa>(const MoveTokensParams& p, int64_t begin, int64_t end, Stores stores) {
  const auto& planes = p.copies.planes;
  if (p.overlap) {
    alignas(kCacheLine) char buffer[OverlappingCopy::kBufferBytes];
    for_each_plane(planes.groups, 1, begin, end, [&](const auto& group, const PlanePair& plane, int64_t, int64_t) {
      OverlappingCopy{p, group.layout, plane, buffer}.copy_all();
    });
    return;
  }
  const auto slots_of = [&](int64_t i) { return SlotPair{p.src_slots.indices.at(i), p.dst_slots.indices.at(i)}; };
  for_each_plane(planes.groups, p.num_tokens(), begin, end,
                 [&](const auto& group, const PlanePair& plane, int64_t i, int64_t j) {
                   copy_units(p.copies, group.layout, group.layout.unit, plane, slots_of, i, j, stores);
                 });
  finish(stores);
}

template <>
void run<kIsa>(const CompactCacheParams& p, int64_t begin, int64_t end, Stores stores) {
  const int64_t num_rows = p.kept.is_per_head ? p.num_heads : 1;
  for_each_plane(p.planes.groups, p.kept.num_sequences, begin, end,
                 [&](const auto& group, const Plane& plane, int64_t i, int64_t j) {
                   for (int64_t s = i; s < j; ++s) {
                     for (int64_t row = 0; row < num_rows; ++row) {
                       compact(p, group.layout,
                               {plane.data + row * group.layout.stride_head_bytes, p.kept.keep_of(plane.index, row),
                                p.num_heads / num_rows},
                               s, stores);
                     }
                   }
                 });
  finish(stores);
}

}  // namespace multikv::cpu
