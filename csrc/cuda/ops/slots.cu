#include <algorithm>

#include "cuda/cache/find_sequence.cuh"
#include "cuda/core/divide.cuh"
#include "cuda/core/grid.h"
#include "cuda/launch.h"
#include "params/slots_params.h"

namespace multikv::gpu {
namespace {

constexpr int kGroups = 40;  // the most groups of a launch

// The params of a launch. params.groups is not read.
struct SlotLaunch {
  ComputeSlotMappingParams params;
  Divisor num_tokens;
  SlotGroup groups[kGroups];
};
static_assert(LaunchParams<SlotLaunch>);

// Returns the slot of a position in a group, or -1 if there is none. `row` and `position` are not negative.
__device__ __forceinline__ int64_t slot_of(const SlotGroup& group, const ContextRanks& ranks, int64_t row,
                                           int64_t position) {
  const PositionRun run =
      group.run_at(position, ranks, [](uint64_t x, const Divisor& divisor) { return quotient_of(x, divisor); });
  if (run.offset < 0 || run.column >= group.num_columns) return -1;
  const int64_t block = PrefetchedIndex(group.block_table, row * group.block_table.stride + run.column).value();
  return group.has_slot({block, run.offset}) ? block * group.block_size.signed_value() + run.offset : -1;
}

// Returns the row of the block tables that a token's blocks are in, or a negative number if there is none.
__device__ __forceinline__ int64_t row_of(const ComputeSlotMappingParams& p, int64_t sequence) {
  if (sequence < 0 || sequence >= p.num_sequences) return -1;
  const int64_t row = p.table_rows.is_given() ? PrefetchedIndex(p.table_rows, sequence).value() : sequence;
  return row < p.num_rows ? row : -1;
}

// Finds, for each lane of a warp, the sequence of the lane's token, `first` + lane. All lanes must call. The sequences
// of most batches are equally long: then the sequence is known without a search, and its two bounds confirm it.
__device__ __forceinline__ int64_t find_sequence(const SlotLaunch& launch, int64_t first, int num_tokens, int lane) {
  const ComputeSlotMappingParams& p = launch.params;
  const int64_t token = first + (lane < num_tokens ? lane : 0);
  const auto guess = static_cast<int64_t>(
      quotient_of(static_cast<uint64_t>(token) * static_cast<uint64_t>(p.num_sequences), launch.num_tokens));
  const bool exists = guess < p.num_sequences;
  const PrefetchedIndex begin(p.cu_query_lens, exists ? guess : 0), end(p.cu_query_lens, exists ? guess + 1 : 0);
  const bool is_right = (begin.value() <= token) & (token < end.value());
  if (ballot(!is_right) == 0) return guess;
  return sequence_of({p.cu_query_lens, p.num_sequences + 1}, {first, num_tokens, lane}, lane).sequence;
}

// A thread computes the slot of one token in one group. Thread blocks: x counts chunks of tokens, y groups.
__global__ void __launch_bounds__(kThreads) compute_slot_mapping_kernel(const MULTIKV_GRID_CONSTANT SlotLaunch launch) {
  const ComputeSlotMappingParams& p = launch.params;
  const SlotGroup& group = launch.groups[blockIdx.y];
  const int lane = threadIdx.x % 32;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, first = token - lane;
  if (first >= p.num_tokens) return;
  const int num_tokens = p.num_tokens - first < 32 ? static_cast<int>(p.num_tokens - first) : 32;
  const PrefetchedIndex position_index(p.positions, lane < num_tokens ? token : first);
  const int64_t sequence = find_sequence(launch, first, num_tokens, lane);
  if (lane >= num_tokens) return;
  const int64_t row = row_of(p, sequence), position = position_index.value();
  const int64_t slot = row >= 0 && position >= 0 ? slot_of(group, p.ranks, row, position) : -1;
  if (p.has_int64_slots) static_cast<int64_t*>(group.slots)[token] = slot;
  else static_cast<int32_t*>(group.slots)[token] = static_cast<int32_t>(slot);
}

}  // namespace

template <>
cudaError_t launch(const ComputeSlotMappingParams& p, const Context& context) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.num_tokens, kThreads));
  for (int64_t first = 0; first < p.num_groups; first += kGroups) {
    SlotLaunch launch{.params = p, .num_tokens = Divisor::of(p.num_tokens), .groups = {}};
    launch.params.num_groups = std::min<int64_t>(p.num_groups - first, kGroups);
    std::copy_n(p.groups + first, launch.params.num_groups, launch.groups);
    const dim3 grid(blocks, static_cast<unsigned>(launch.params.num_groups));
    compute_slot_mapping_kernel<<<grid, kThreads, 0, context.stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace multikv::gpu
