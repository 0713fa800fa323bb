#include <algorithm>
#include <limits>
#include <vector>

#include "frontend/check/formats.h"
#include "frontend/check/sequence_bounds.h"
#include "frontend/check/shapes.h"
#include "params/slots_params.h"

namespace multikv {

namespace {

// The arguments of which each group of caches has one.
struct Groups {
  const TensorList& block_tables;
  const MutableTensorList& slot_mappings;
  const IntList& block_sizes;

  int64_t size() const { return block_tables.size(); }
};

std::string item_text(std::string_view list, int64_t i) { return join({list, "[", text(i), "]"}); }

void check_lengths(const Call& call, const Groups& groups) {
  const auto check = [&](std::string_view argument, std::string_view noun, int64_t size) {
    if (size == groups.size()) return;
    call.fail(argument, count_text(groups.size(), noun) + ", one for each of block_tables", text(size));
  };
  check("slot_mappings", "tensor", groups.slot_mappings.size());
  check("block_sizes", "number", groups.block_sizes.size());
}

void check_numbers(const Call& call, const Groups& groups, int64_t world, int64_t rank, int64_t interleave) {
  check_at_least(call, "cp_world", world, 1);
  check_at_least(call, "cp_interleave", interleave, 1);
  if (rank < 0 || rank >= world) {
    call.fail("cp_rank", join({"a rank from 0 to ", text(world - 1), " (cp_world is ", text(world), ")"}), text(rank));
  }
  for (int64_t i = 0; i < groups.size(); ++i) {
    const int64_t block_size = groups.block_sizes[i];
    if (block_size < 1) call.fail(item_text("block_sizes", i), "at least 1", text(block_size));
    if (block_size % interleave == 0) continue;
    call.fail(item_text("block_sizes", i), join({"a multiple of ", text(interleave), " (cp_interleave)"}),
              text(block_size));
  }
}

// Checks cu_query_lens [num_sequences + 1] and table_rows [num_sequences], but not their values.
void set_sequences(Call& call, ComputeSlotMappingParams& p, const Tensor& cu_query_lens,
                   const OptionalTensor& table_rows) {
  p.cu_query_lens = indices_of(call, "cu_query_lens", cu_query_lens, 1);
  if (cu_query_lens.size(0) == 0) call.fail("cu_query_lens", "at least 1 element", shape_text(cu_query_lens));
  p.num_sequences = cu_query_lens.size(0) - 1;
  if (!table_rows.has_value()) return;
  p.table_rows = indices_of(call, "table_rows", *table_rows, 1);
  check_size(call, "table_rows", *table_rows, 0, p.num_sequences, "sequences of cu_query_lens");
}

// The number of positions that a column of a block table stands for. A product above the largest uint64_t is
// replaced by the largest uint64_t, which no position reaches.
Divisor column_size(int64_t block_size, int64_t world) {
  constexpr uint64_t kMost = ~uint64_t{0};
  const auto a = static_cast<uint64_t>(block_size), b = static_cast<uint64_t>(world);
  const uint64_t value = a > kMost / b ? kMost : a * b;
  return {value, kMost / value};
}

// Checks the tensors of a group, whose rows, tokens and dtypes must be those of the first group. Returns the group
// without the address of its slots.
SlotGroup make_group(Call& call, const Groups& groups, int64_t i, int64_t world) {
  const std::string table_name = item_text("block_tables", i), slots_name = item_text("slot_mappings", i);
  const Tensor &table = groups.block_tables[i], &slots = groups.slot_mappings[i];
  const Indices block_table = indices_of(call, table_name, table, 2);
  static_cast<void>(indices_of(call, slots_name, slots, 1));
  check_size(call, table_name, table, 0, groups.block_tables[0].size(0), "rows of block_tables[0]");
  check_same_dtype(call, table_name, table, groups.block_tables[0], "block_tables[0]");
  check_size(call, slots_name, slots, 0, groups.slot_mappings[0].size(0), "size of slot_mappings[0]");
  check_same_dtype(call, slots_name, slots, groups.slot_mappings[0], "slot_mappings[0]");
  const int64_t block_size = groups.block_sizes[i];
  const int64_t largest =
      slots.dtype() == Dtype::kInt64 ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int32_t>::max();
  return {
      .block_table = block_table,
      .num_columns = table.size(1),
      .slots = nullptr,
      .block_size = Divisor::of(block_size),
      .column_size = column_size(block_size, world),
      .last_slot = {largest / block_size, largest % block_size},
  };
}

// The index tensors, where the host can read them.
struct HostTables {
  HostTables(const Call& call, const ComputeSlotMappingParams& p)
      : bounds(call, p.cu_query_lens, 1, p.num_sequences + 1), positions(call, p.positions, 1, p.num_tokens),
        rows(call, p.table_rows, 1, p.num_sequences) {
    for (int64_t g = 0; g < p.num_groups; ++g) {
      tables.emplace_back(call, p.groups[g].block_table, p.num_rows, p.groups[g].num_columns);
    }
  }

  HostIndices bounds, positions, rows;
  std::vector<HostIndices> tables;
};

// Fails unless the block table of group g has a block for a run of the caller's rank, and its slots can be stored.
void check_run(const Call& call, const ComputeSlotMappingParams& p, const HostTables& host, int64_t g, int64_t row,
               const TokenPositions& run) {
  const SlotGroup& group = p.groups[g];
  if (run.column >= group.num_columns) {
    call.fail_index(
        "positions", text(run.token),
        join({"a position in the ", count_text(group.num_columns, "column"), " of ", item_text("block_tables", g)}),
        host.positions[run.token]);
  }
  const int64_t block = host.tables[g].at(row, run.column);
  if (block < 0 || group.has_slot({block, run.offset + run.count - 1})) return;
  call.fail_index(item_text("block_tables", g), join({text(row), ", ", text(run.column)}),
                  join({"a block whose slots fit ", p.has_int64_slots ? "int64" : "int32"}), block);
}

// Fails because a sequence has tokens, but the block tables have no row for them.
[[noreturn]] void fail_row(const Call& call, const ComputeSlotMappingParams& p, int64_t sequence, int64_t row) {
  if (p.table_rows.is_given()) {
    call.fail_index("table_rows", text(sequence), range_text("row", p.num_rows, " in block_tables"), row);
  }
  call.fail_index("cu_query_lens", text(sequence),
                  join({"tokens only in sequences below ", text(p.num_rows), " (rows of block_tables)"}), sequence);
}

// Returns the largest of the indices begin .. end - 1; -1 if there is none.
int64_t largest_of(const Indices& indices, int64_t begin, int64_t end) {
  const auto largest = [&]<class T>(const T* values) -> int64_t {
    T most = -1;
    for (int64_t i = begin; i < end; ++i) most = std::max(most, values[i]);
    return most;
  };
  return indices.is_int64 ? largest(static_cast<const int64_t*>(indices.data))
                          : largest(static_cast<const int32_t*>(indices.data));
}

// Returns true if check_run() and the check of the rows would certainly pass for every token: the block tables have the
// largest row and the column of the largest position, and the slots of every block fit the dtype of the slot mappings.
// This is much faster than check_run() for each run of tokens.
bool have_all_slots(const ComputeSlotMappingParams& p, const HostTables& host) {
  const int64_t last_row =
      host.rows.is_given() ? largest_of(host.rows.view(), 0, p.num_sequences) : p.num_sequences - 1;
  const int64_t last_position = largest_of(host.positions.view(), host.bounds[0], host.bounds[p.num_sequences]);
  if (last_row >= p.num_rows) return false;
  for (int64_t g = 0; g < p.num_groups; ++g) {
    const SlotGroup& group = p.groups[g];
    const int64_t largest_block =
        group.block_table.is_int64 ? std::numeric_limits<int64_t>::max() : std::numeric_limits<int32_t>::max();
    const auto last_column = static_cast<uint64_t>(std::max<int64_t>(last_position, 0)) / group.column_size.value;
    if (largest_block >= group.last_slot.block) return false;
    if (last_position >= 0 && last_column >= static_cast<uint64_t>(group.num_columns)) return false;
  }
  return true;
}

// Fails if a slot of the caller's rank does not exist. Positions of other ranks are not looked at.
void check_values(const Call& call, const ComputeSlotMappingParams& p) {
  const HostTables host(call, p);
  check_bounds(call, host.bounds, p.num_sequences + 1, p.num_tokens,
               {.argument = "cu_query_lens", .rows = "size of slot_mappings"});
  if (have_all_slots(p, host)) return;
  const auto divide = [](uint64_t x, const Divisor& divisor) { return x / divisor.value; };
  for (int64_t s = 0; s < p.num_sequences; ++s) {
    const int64_t row = host.rows.is_given() ? host.rows[s] : s;
    if (row < 0) continue;
    for (int64_t g = 0; g < p.num_groups; ++g) {
      p.groups[g].for_each_run(host.positions.view(), host.bounds[s], host.bounds[s + 1], p.ranks, divide,
                               [&](const TokenPositions& run) {
                                 if (run.offset < 0) return;
                                 if (row >= p.num_rows) fail_row(call, p, s, row);
                                 check_run(call, p, host, g, row, run);
                               });
    }
  }
}

}  // namespace

ComputeSlotMappingParams make_compute_slot_mapping_params(Call& call, const TensorList& block_tables,
                                                          const Tensor& cu_query_lens, const Tensor& positions,
                                                          const MutableTensorList& slot_mappings,
                                                          const IntList& block_sizes, const OptionalTensor& table_rows,
                                                          int64_t cp_world, int64_t cp_rank, int64_t cp_interleave) {
  ComputeSlotMappingParams p{};
  const Groups groups{block_tables, slot_mappings, block_sizes};
  set_sequences(call, p, cu_query_lens, table_rows);
  p.positions = indices_of(call, "positions", positions, 1);
  check_lengths(call, groups);
  check_numbers(call, groups, cp_world, cp_rank, cp_interleave);
  if (groups.size() == 0) {
    call.set_nothing_to_do();
    return p;
  }
  static thread_local std::vector<SlotGroup> slot_groups;  // lives until the thread's next call
  slot_groups.clear();
  for (int64_t i = 0; i < groups.size(); ++i) slot_groups.push_back(make_group(call, groups, i, cp_world));
  p.num_tokens = slot_mappings[0].size(0);
  p.num_rows = block_tables[0].size(0);
  p.has_int64_slots = slot_mappings[0].dtype() == Dtype::kInt64;
  check_min_size(call, "positions", positions, 0, p.num_tokens, "size of slot_mappings");
  p.ranks = {Divisor::of(cp_world), Divisor::of(cp_interleave), cp_rank};
  p.groups = slot_groups.data();
  p.num_groups = groups.size();
  if (p.num_tokens == 0) call.set_nothing_to_do();
  if (checks_indices(call)) check_values(call, p);
  if (call.nothing_to_do()) return p;
  for (int64_t i = 0; i < groups.size(); ++i) {
    slot_groups[i].slots = mutable_data(call, item_text("slot_mappings", i), slot_mappings[i]);
  }
  return p;
}

}  // namespace multikv
