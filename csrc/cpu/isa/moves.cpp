#include "cpu/isa/cache/slot_copies.h"
#include "params/moves_params.h"

namespace multikv::cpu {
namespace {

// Copies the units [begin, end) of a plane. Each row is prefetched while an earlier row is copied: `found` holds the
// rows that have been found and not yet copied.
template <std::invocable<int64_t> SlotsOf>
void copy_units(const PlaneCopies& copies, const CopyLayout& layout, const StridedRows& rows, const PlanePair& plane,
                const SlotsOf& slots_of, int64_t begin, int64_t end, Stores stores) {
  constexpr int64_t kBytesAhead = 8192, kMostAhead = 64;
  const int64_t size = rows.row_size, wanted = kBytesAhead / size + 1;
  const int64_t ahead = wanted < kMostAhead ? wanted : kMostAhead;
  PlanePair found[kMostAhead];
  int64_t count = 0, oldest = 0;
  for (UnitRows row(copies, layout, rows, plane, slots_of, begin, end); !row.is_done(); row.next()) {
    const PlanePair present{row.src(), row.dst()};
    if (count < ahead) {
      found[count++] = present;
      continue;
    }
    copy(found[oldest].dst, found[oldest].src, size, stores, present.src);
    found[oldest] = present;
    if (++oldest == ahead) oldest = 0;
  }
  for (int64_t i = 0; i < count; ++i) {
    copy(found[oldest].dst, found[oldest].src, size, stores);
    if (++oldest == count) oldest = 0;
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

// Moves what one sequence keeps in one head, or in all heads if they keep the same.
void compact(const CompactCacheParams& p, const CompactLayout& layout, char* data, const Indices& keep, int64_t s,
             int64_t num_heads) {
  const KeptTokens& kept = p.kept;
  const auto slot = [&](int64_t position) {
    const BlockOffset at = split_slot(p.blocks, position);
    return data + layout.slots.offset_of({kept.block_table.at(s, at.block), at.offset});
  };
  const int64_t begin = kept.keep_offsets.at(s), start = kept.dst_start.is_given() ? kept.dst_start.at(s) : 0;
  for (int64_t m = begin; m < kept.keep_offsets.at(s + 1); ++m) {
    const int64_t from = keep.at(m), to = start + m - begin;
    if (from == to) continue;
    const char* src = slot(from);
    char* dst = slot(to);
    for (int64_t head = 0; head < num_heads; ++head) {
      copy(dst + head * layout.stride_head_bytes, src + head * layout.stride_head_bytes, layout.head_bytes,
           Stores::kOrdinary);
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
void run<kIsa>(const CompactCacheParams& p, int64_t begin, int64_t end, Stores) {
  for_each_plane(p.planes.groups, p.kept.num_sequences, begin, end,
                 [&](const auto& group, const Plane& plane, int64_t i, int64_t j) {
                   for (int64_t s = i; s < j; ++s) {
                     if (!p.kept.is_per_head) {
                       compact(p, group.layout, plane.data, p.kept.keep_of(plane.index, 0), s, p.num_heads);
                       continue;
                     }
                     for (int64_t head = 0; head < p.num_heads; ++head) {
                       compact(p, group.layout, plane.data + head * group.layout.stride_head_bytes,
                               p.kept.keep_of(plane.index, head), s, 1);
                     }
                   }
                 });
}

}  // namespace multikv::cpu
