#include <concepts>

#include "cpu/isa/cache/token_runs.h"
#include "cpu/isa/simd/vec.h"
#include "params/slots_params.h"

namespace multikv::cpu {
namespace {

// The tokens begin .. end - 1, which belong to one sequence or to none. `row` is the sequence's row of the block
// tables; it is negative if there is no sequence, or if the sequence has no blocks.
struct TokenRange {
  int64_t row, begin, end;
};

// Divides the tokens [begin, end), including those of no sequence, into TokenRanges, and calls body(TokenRange) for
// each.
template <std::invocable<TokenRange> Body>
void for_each_sequence(const ComputeSlotMappingParams& p, int64_t begin, int64_t end, const Body& body) {
  // The binary search sets `next` to the number of bounds that are at most `begin`. Token `begin` belongs to sequence
  // next - 1.
  int64_t next = 0, high = p.num_sequences + 1;
  while (next < high) {
    const int64_t middle = (next + high) / 2;
    if (p.cu_query_lens.at(middle) <= begin) next = middle + 1;
    else high = middle;
  }
  for (int64_t token = begin; token < end; ++next) {
    const int64_t bound = next <= p.num_sequences ? p.cu_query_lens.at(next) : end;
    const int64_t stop = bound < end ? bound : end;
    if (stop <= token) continue;
    const bool is_sequence = next > 0 && next <= p.num_sequences;
    body(TokenRange{is_sequence ? p.table_row(next - 1) : -1, token, stop});
    token = stop;
  }
}

// Writes the slots first, first + 1, ..., first + count - 1. If `first` is -1, writes -1 `count` times.
template <std::integral Slot>
void fill(Slot* slots, int64_t count, int64_t first) {
  const Slot step = first < 0 ? 0 : 1;
  if (count == 1) {  // frequent, because decoding sequences have one token; the vectorised loop is slower
    *slots = static_cast<Slot>(first);
    return;
  }
  for (int64_t i = 0; i < count; ++i) slots[i] = static_cast<Slot>(first) + step * static_cast<Slot>(i);
}

// Writes the slots of tokens of one sequence.
template <std::integral Slot>
void write_slots(const ComputeSlotMappingParams& p, const SlotGroup& group, const TokenRange& tokens) {
  Slot* const slots = static_cast<Slot*>(group.slots);
  if (tokens.row < 0) return fill(slots + tokens.begin, tokens.end - tokens.begin, -1);
  const Indices table = group.block_table.row(tokens.row);
  group.for_each_run(p.positions, tokens.begin, tokens.end, p.ranks, kQuotient, [&](const TokenPositions& run) {
    const int64_t block = run.offset < 0 ? -1 : table.at(run.column);
    fill(slots + run.token, run.count, block < 0 ? -1 : block * group.block_size.signed_value() + run.offset);
  });
}

}  // namespace

template <>
void run<kIsa>(const ComputeSlotMappingParams& p, int64_t begin, int64_t end, Stores) {
  for_each_sequence(p, begin, end, [&](const TokenRange& tokens) {
    for (int64_t g = 0; g < p.num_groups; ++g) {
      if (p.has_int64_slots) write_slots<int64_t>(p, p.groups[g], tokens);
      else write_slots<int32_t>(p, p.groups[g], tokens);
    }
  });
}

}  // namespace multikv::cpu
