// What the front end hands to a backend for the ops of family moves.
#pragma once

#include "core/planes.h"
#include "core/rows.h"
#include "core/slots.h"
#include "core/work.h"
#include "params/launch_params.h"

namespace multikv {

// The strides of one side of a copy, in bytes.
struct SlotStrides {
  int64_t block, slot;

  constexpr int64_t offset_of(BlockOffset at) const { return at.block * block + at.offset * slot; }
  AlignmentBits alignment_bits() const { return AlignmentBits(block) | slot; }
  bool operator==(const SlotStrides&) const = default;
};

// One plane on both sides of a copy: the addresses of slot 0.
struct PlanePair {
  const char* src;
  char* dst;

  intptr_t distance() const { return reinterpret_cast<intptr_t>(dst) - reinterpret_cast<intptr_t>(src); }
};

// How the tokens of a plane are copied.
struct CopyLayout {
  SlotStrides src, dst;
  StridedRows unit;   // the copy of tokens_per_unit neighbouring tokens, in bytes
  StridedRows token;  // the copy of one token, for the tokens after the last whole unit

  AlignmentBits alignment_bits() const {
    return src.alignment_bits() | dst.alignment_bits() | unit.src_alignment_bits() | unit.dst_alignment_bits() |
           token.src_alignment_bits() | token.dst_alignment_bits();
  }
  bool operator==(const CopyLayout&) const = default;
};

// The planes of two lists, which are copied plane by plane.
struct PlaneCopies {
  PlaneGroups<CopyLayout, PlanePair> planes;
  Blocks src_blocks, dst_blocks;
  int64_t token_bytes;             // of all planes together
  int32_t src_device, dst_device;  // -1: the host
};

// The first slots that a unit is read from and written to.
struct SlotPair {
  int64_t src, dst;
};

// pack_layers and unpack_layers. Staging is addressed by slots like a cache: slot t is token t, and the block size is
// the size of dimension 1.
//
// Tokens are copied in units of tokens_per_unit tokens, a divisor of both block sizes, so that no unit crosses the end
// of a block. The last tokens, if they do not fill a unit, are copied one by one.
struct PackLayersParams {
  PlaneCopies copies;
  IndexList block_ids;
  int64_t num_tokens, tokens_per_unit;
  bool is_unpack;        // whether staging is the source
  bool are_ids_on_host;  // whether only the host can read block_ids
  Slots slots;           // of unpack: block_ids, in which the CPU looks for duplicates

  constexpr const Blocks& cache_blocks() const { return is_unpack ? copies.dst_blocks : copies.src_blocks; }
  constexpr int64_t num_units() const { return num_tokens / tokens_per_unit; }
  constexpr int64_t num_last_tokens() const { return num_tokens % tokens_per_unit; }
  // has_duplicate_slots() takes slots. With block size 1, the number of a block is that of its only slot.
  constexpr Blocks blocks() const { return {cache_blocks().num_blocks, Divisor::of(1)}; }
  // An item is a unit of a plane, or one of the last tokens of a plane: first all items of plane 0, then those of plane
  // 1, and so on.
  constexpr Work work() const {
    const int64_t items = (num_units() + num_last_tokens()) * copies.planes.num_planes;
    const int64_t bytes = num_tokens * copies.token_bytes / items;
    return {.num_items = items, .bytes_read = bytes, .bytes_written = bytes, .is_read_soon = false};
  }
};
static_assert(LaunchParams<PackLayersParams>);

struct MoveTokensParams {
  PlaneCopies copies;  // a unit is a token
  IndexList src_slots, dst_slots;
  bool overlap;            // whether all tokens are read before any token is written
  bool are_slots_on_host;  // whether only the host can read the slots
  Slots slots;             // the slots that are written

  constexpr int64_t num_tokens() const { return dst_slots.size; }
  constexpr const Blocks& blocks() const { return copies.dst_blocks; }
  // An item is a token of a plane, or, with overlap, all tokens of a plane: first all items of plane 0, and so on.
  constexpr Work work() const {
    const int64_t items = (overlap ? 1 : num_tokens()) * copies.planes.num_planes;
    const int64_t bytes = num_tokens() * copies.token_bytes / items;
    return {.num_items = items, .bytes_read = bytes, .bytes_written = bytes, .is_read_soon = false};
  }
};
static_assert(LaunchParams<MoveTokensParams>);

// The positions that sequences keep. Those of sequence s are the elements keep_offsets[s] .. keep_offsets[s + 1] - 1 of
// a row of `keep`. The token at the position in element m moves to position dst_start[s] + m - keep_offsets[s].
struct KeptTokens {
  Indices keep;          // [groups * rows, elements], where rows is the number of heads, or 1: see is_per_head
  Indices keep_offsets;  // [sequences + 1]
  Indices dst_start;     // [sequences]; all 0 if not given
  Indices block_table;   // [sequences, blocks_per_sequence]
  int64_t keep_stride_group, num_elements, num_sequences, blocks_per_sequence;
  int64_t planes_per_group;
  bool is_per_group, is_per_head;  // whether each group of planes, or each head, keeps its own positions

  // What the planes of a group keep, [rows, elements], and what a head of them keeps, [elements].
  constexpr Indices keep_of_group(int64_t group) const {
    Indices rows = keep;
    rows.data = static_cast<const char*>(rows.data) + group * keep_stride_group * (rows.is_int64 ? 8 : 4);
    return rows;
  }
  constexpr Indices keep_of(int64_t plane, int64_t head) const {
    const Indices rows = keep_of_group(plane / planes_per_group);
    return is_per_head ? rows.row(head) : rows;
  }
};

// The strides and the size of a head, in bytes.
struct CompactLayout {
  SlotStrides slots;
  int64_t stride_head_bytes, head_bytes;

  AlignmentBits alignment_bits() const { return slots.alignment_bits() | stride_head_bytes | head_bytes; }
  bool operator==(const CompactLayout&) const = default;
};

struct CompactCacheParams {
  PlaneGroups<CompactLayout> planes;  // written
  Blocks blocks;
  KeptTokens kept;
  int64_t num_heads;
  int64_t token_bytes;  // of all planes together

  // An item is one sequence of a plane: first all sequences of plane 0, then those of plane 1, and so on.
  constexpr Work work() const {
    const int64_t items = planes.num_planes * kept.num_sequences;
    const int64_t bytes = kept.num_elements * token_bytes / items;
    return {.num_items = items, .bytes_read = bytes, .bytes_written = bytes};
  }
};
static_assert(LaunchParams<CompactCacheParams>);

}  // namespace multikv
