#include "cuda/moves/copy_units.cuh"
#include "cuda/moves/overlapping_pairs.h"

namespace multikv::gpu {
namespace {

// The pairs of slots of move_tokens.
struct MovedPairs {
  using Entry = SlotPair;
  Indices src_slots, dst_slots;  // if they are in the memory of the device
  bool are_on_host;

  __device__ SlotPair of(int64_t i, const Entry* entries, int64_t first_entry) const {
    if (are_on_host) return entries[i];
    const PrefetchedIndex src(src_slots, first_entry + i), dst(dst_slots, first_entry + i);
    return {src.value(), dst.value()};
  }
};

// What a launch with overlap knows besides its planes. A thread block copies a column, which is `column_vectors`
// neighbouring vectors of every token.
template <class Layout>
struct OverlapHead {
  using Item = PlanePair;
  using Entry = SlotPair;
  SlotLayout slots;
  Layout unit;
  MovedPairs pairs;
  Divisor32 column_vectors, columns_per_plane;
};

constexpr int kOverlapThreads = 1024, kHeldVectors = 8;
// The most vectors of a token that one launch copies. Each of its thread blocks copies 2 of them or more, so that 2048
// planes have fewer than 2^31 thread blocks.
constexpr int64_t kMaxOverlapVectors = int64_t{1} << 20;

// The addresses of vector i of a column, in the order of tokens; none if the pair of the token has no slots.
template <class Launch>
__device__ Addresses vector_of_column(const Launch& launch, const PlanePair& plane, uint32_t first_vector, uint32_t i) {
  const auto& head = launch.head;
  const uint32_t token = head.column_vectors.divide(i);
  const uint32_t vector = first_vector + i - token * head.column_vectors.value;
  if (token >= static_cast<uint32_t>(launch.num_entries) || vector >= head.unit.num_vectors) return {};
  const Offsets slot = head.slots.of(head.pairs.of(token, launch.entries(), launch.first_entry));
  if (slot.src < 0) return {};
  const Offsets at = head.unit.vector(vector);
  return {plane.src + slot.src + at.src, plane.dst + slot.dst + at.dst};
}

// Copies as if all tokens were read before one is written: a thread block holds a column of all tokens in registers
// before it writes the first vector. No other thread block reads or writes the column.
template <int kWidth, class Launch>
__global__ void __launch_bounds__(kOverlapThreads) move_overlapping_kernel(const MULTIKV_GRID_CONSTANT Launch launch) {
  const auto& head = launch.head;
  const uint32_t plane_number = head.columns_per_plane.divide(blockIdx.x);
  const uint32_t column = blockIdx.x - plane_number * head.columns_per_plane.value;
  const PlanePair plane = launch.items()[plane_number];
  const uint32_t first_vector = column * head.column_vectors.value;
  Pack<kWidth> values[kHeldVectors];
#pragma unroll
  for (int k = 0; k < kHeldVectors; ++k) {
    const Addresses at = vector_of_column(launch, plane, first_vector, k * blockDim.x + threadIdx.x);
    if (at.src != nullptr) values[k] = Pack<kWidth>::read(at.src);
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kHeldVectors; ++k) {
    const Addresses at = vector_of_column(launch, plane, first_vector, k * blockDim.x + threadIdx.x);
    if (at.src != nullptr) values[k].write(at.dst);
  }
}

template <int kWidth, class Launch>
void launch_overlapping(Launch& launch, const Context& context) {
  auto& head = launch.head;
  constexpr int64_t kMostVectors = kOverlapThreads * kHeldVectors;
  const int64_t num_vectors = head.unit.num_vectors, num_tokens = launch.num_entries;
  const int64_t column = std::min(num_vectors, kMostVectors / num_tokens);
  const int64_t columns = ceil_div(num_vectors, column);
  head.column_vectors = Divisor32::of(column);
  head.columns_per_plane = Divisor32::of(columns);
  const int64_t vectors_of_column = ceil_div<int64_t>(column * num_tokens, 32) * 32;
  const auto threads = static_cast<unsigned>(std::min<int64_t>(vectors_of_column, kOverlapThreads));
  const auto thread_blocks = static_cast<unsigned>(columns * launch.num_items);
  move_overlapping_kernel<kWidth><<<thread_blocks, threads, 0, context.stream>>>(launch);
}

// The part of the pairs that one call of launch_planes() copies. `pairs` is nullptr if they are on the device.
struct PairRange {
  const SlotPair* pairs;
  int64_t count;
  bool overlap;  // whether all tokens are read before one is written
};

template <class Head, class Launch>
void launch_pairs(const Head& head, const PlanesWork<Head>& work, const SlotPair* pairs, const Launch& launch) {
  if (pairs == nullptr) launch_planes(head, work, nullptr, launch);
  else launch_planes(head, work, [&](int64_t i) { return pairs[i]; }, launch);
}

cudaError_t launch_group(const MoveTokensParams& p, const PlaneGroup<CopyLayout, PlanePair>& group,
                         const PairRange& range, const Context& context) {
  const auto launch_part = [&]<int kWidth, Arrangement kArrangement>(const UnitPart& part) {
    using Layout = UnitLayout<kWidth, kArrangement>;
    const SlotLayout slots{p.copies.src_blocks, p.copies.dst_blocks, group.layout.src, group.layout.dst};
    const MovedPairs pairs{p.src_slots.indices, p.dst_slots.indices, p.are_slots_on_host};
    if (range.overlap) {
      using Head = OverlapHead<Layout>;
      const Head head{.slots = slots, .unit = Layout::of(part.rows), .pairs = pairs};
      const PlanesWork<Head> work{part.planes, group.num_planes, range.count};
      launch_pairs(head, work, range.pairs, [&](auto& launch) { launch_overlapping<kWidth>(launch, context); });
    } else {
      using Head = CopyHead<MovedPairs, Layout>;
      const Head head{.slots = slots, .unit = Layout::of(part.rows), .pairs = pairs};
      const PlanesWork<Head> work{part.planes, group.num_planes, range.count};
      const std::optional<Link> link = link_of(p.copies, context);
      launch_pairs(head, work, range.pairs, [&](auto& launch) {
        launch.head.num_units = launch.num_entries;
        launch_units<kWidth>(launch, link ? &*link : nullptr, context);
      });
    }
    return cudaGetLastError();
  };
  const int64_t most_vectors = range.overlap ? kMaxOverlapVectors : kMaxUnitVectors;
  return with_unit_layouts(group, group.layout.unit, most_vectors, launch_part);
}

cudaError_t launch_all_groups(const MoveTokensParams& p, const PairRange& range, const Context& context) {
  for (int64_t i = 0; i < p.copies.planes.num_groups; ++i) {
    MULTIKV_RETURN_IF_FAILED(launch_group(p, p.copies.planes.groups[i], range, context));
  }
  return cudaSuccess;
}

// The pairs of lists in the memory of the host, without those that are padding.
std::vector<SlotPair> pairs_on_host(const MoveTokensParams& p) {
  std::vector<SlotPair> pairs;
  pairs.reserve(p.num_tokens());
  for (int64_t i = 0; i < p.num_tokens(); ++i) {
    const SlotPair pair{p.src_slots.indices.at(i), p.dst_slots.indices.at(i)};
    if (pair.src >= 0 && pair.dst >= 0) pairs.push_back(pair);
  }
  return pairs;
}

// The number of pairs that fit into the parameters of one launch with overlap, whatever the number of planes.
int64_t most_pairs_of_a_launch() {
  using Head = OverlapHead<UnitLayout<16, Arrangement::kAnyDims>>;
  const int payload = has_large_parameters() ? PlanesLaunch<Head, kLargeLaunchBytes>::kPayload
                                             : PlanesLaunch<Head, kSmallLaunchBytes>::kPayload;
  return payload / 2 / static_cast<int64_t>(sizeof(SlotPair));
}

// Copies the pairs of slots in planes that all have the same distance from src to dst. The pairs are divided into
// batches that fit into the parameters of a launch.
cudaError_t launch_batches(const MoveTokensParams& p, const PlaneGroup<CopyLayout, PlanePair>& group,
                           const std::vector<SlotPair>& pairs, int64_t most, const Context& context) {
  const PairBatches batches = divide_overlapping(pairs, PoolSlots{p.copies, group}, most);
  int64_t begin = 0;
  for (const int64_t end : batches.ends) {
    const PairRange range{batches.pairs.data() + begin, end - begin, true};
    MULTIKV_RETURN_IF_FAILED(launch_group(p, group, range, context));
    begin = end;
  }
  return cudaSuccess;
}

// Divides the planes into runs with the same distance from src to dst, because the distance says which slots of src and
// dst share memory, and so how the pairs can be divided into batches.
cudaError_t launch_all_batches(const MoveTokensParams& p, const std::vector<SlotPair>& pairs, int64_t most,
                               const Context& context) {
  for (int64_t i = 0; i < p.copies.planes.num_groups; ++i) {
    const PlaneGroup<CopyLayout, PlanePair>& group = p.copies.planes.groups[i];
    for (int64_t begin = 0, end; begin < group.num_planes; begin = end) {
      for (end = begin + 1; end < group.num_planes; ++end) {
        if (group.planes[end].distance() != group.planes[begin].distance()) break;
      }
      MULTIKV_RETURN_IF_FAILED(
          launch_batches(p, {group.layout, group.planes + begin, end - begin}, pairs, most, context));
    }
  }
  return cudaSuccess;
}

}  // namespace

template <>
cudaError_t launch(const MoveTokensParams& p, const Context& context) {
  if (!p.are_slots_on_host) return launch_all_groups(p, {nullptr, p.num_tokens(), p.overlap}, context);
  const std::vector<SlotPair> pairs = pairs_on_host(p);
  const auto count = static_cast<int64_t>(pairs.size()), most = most_pairs_of_a_launch();
  const bool needs_batches = p.overlap && count > most;
  if (needs_batches && !are_apart(p.copies)) return launch_all_batches(p, pairs, most, context);
  return launch_all_groups(p, {pairs.data(), count, p.overlap && !needs_batches}, context);
}

}  // namespace multikv::gpu
