// swap_blocks_batch: large copies go to the copy engines, the other copies to a kernel. Each launch of the kernel makes
// copies of one size and one direction.
#include <algorithm>
#include <bit>
#include <limits>
#include <span>
#include <vector>

#include "cuda/launch.h"
#include "cuda/swap/addresses.h"
#include "cuda/swap/copies.h"
#include "cuda/swap/strategy.h"
#include "cuda/swap/swap_kernel.h"

namespace multikv::gpu {
namespace {

// A copy for the kernel: src and dst are the addresses at which the GPU accesses the memory.
struct KernelCopy {
  uintptr_t src, dst;
  int64_t num_bytes;
  Direction direction;
};

// The order of copies in a plan.
constexpr bool is_before(const KernelCopy& a, const KernelCopy& b) {
  return a.direction != b.direction ? a.direction < b.direction : a.num_bytes < b.num_bytes;
}

// Which copies the kernel makes, and which the copy engines.
struct Plan {
  std::vector<KernelCopy> kept;     // memory for by_kernel, which the next plan reuses
  std::span<KernelCopy> by_kernel;  // ordered by direction and size
  std::vector<int64_t> by_engine;   // indices into the copies of the batch
  bool are_visible;                 // whether a GPU can read and write all copies
};

// Whether a kernel on a device can make a copy.
bool is_within_reach(const ResolvedCopy& copy, int32_t device) {
  const auto& [src, dst] = copy;
  if (!src.is_visible() || !dst.is_visible()) return false;
  if (src.device != device && dst.device != device) return false;
  return src.device < 0 || dst.device < 0 || src.device == dst.device;
}

// The sizes from which the copy engines make the copies of each direction although the kernel could.
struct EngineSizes {
  int64_t from_bytes[kNumDirections];

  EngineSizes(int32_t device, bool may_batch) {
    for (int i = 0; i < kNumDirections; ++i) {
      const auto direction = static_cast<Direction>(i);
      from_bytes[i] =
          copy_engine_from(crossovers.of(device, direction), may_batch && direction != Direction::kWithinDevice);
    }
  }
};

void make_plan(const ResolvedSwapBatch& p, const Context& context, bool may_batch, Plan& plan) {
  const EngineSizes sizes(context.device_index, may_batch);
  if (static_cast<int64_t>(plan.kept.size()) < p.batch.num_copies) plan.kept.resize(p.batch.num_copies);
  plan.by_engine.clear();
  KernelCopy* const begin = plan.kept.data();
  KernelCopy* end = begin;
  bool are_visible = true, is_sorted = true;
  for (int64_t i = 0; i < p.batch.num_copies; ++i) {
    const ResolvedCopy& copy = p.resolved[i];
    const int64_t num_bytes = p.batch.copies[i].num_bytes;
    const Direction direction = direction_of(copy.src.device, copy.dst.device);
    are_visible = are_visible && copy.src.is_visible() && copy.dst.is_visible();
    if (!is_within_reach(copy, context.device_index) || num_bytes >= sizes.from_bytes[static_cast<int>(direction)]) {
      plan.by_engine.push_back(i);
      continue;
    }
    *end = {copy.src.gpu_address, copy.dst.gpu_address, num_bytes, direction};
    is_sorted = is_sorted && (end == begin || !is_before(*end, end[-1]));
    ++end;
  }
  plan.are_visible = are_visible;
  plan.by_kernel = {begin, end};
  if (!is_sorted) std::stable_sort(begin, end, is_before);
}

// How addresses become the kernel's block ids. An id is the distance from the lowest address, in units of unit_bytes. A
// unit is the largest power of two that divides all distances.
struct BlockIds {
  uintptr_t src, dst;  // the lowest addresses
  int unit_log2;       // unit_bytes is 2^unit_log2
  bool do_fit;         // whether all ids have 32 bits

  uint32_t of_src(const KernelCopy& copy) const { return static_cast<uint32_t>((copy.src - src) >> unit_log2); }
  uint32_t of_dst(const KernelCopy& copy) const { return static_cast<uint32_t>((copy.dst - dst) >> unit_log2); }
};

BlockIds block_ids_of(std::span<const KernelCopy> copies) {
  const KernelCopy& first = copies[0];
  uintptr_t src = first.src, dst = first.dst, src_end = src, dst_end = dst, differences = 0;
  for (const KernelCopy& copy : copies) {
    src = std::min(src, copy.src), dst = std::min(dst, copy.dst);
    src_end = std::max(src_end, copy.src), dst_end = std::max(dst_end, copy.dst);
    // The lowest bit in which two addresses differ is the lowest bit of their distance.
    differences |= (copy.src ^ first.src) | (copy.dst ^ first.dst);
  }
  const int unit_log2 = differences == 0 ? 4 : std::countr_zero(differences);
  const uintptr_t most = std::max(src_end - src, dst_end - dst) >> unit_log2;
  return {src, dst, unit_log2, most <= std::numeric_limits<uint32_t>::max()};
}

// Makes copies of one size and one direction by a kernel. If the addresses are too far apart for block ids of 32 bits,
// the copy engines make the copies.
cudaError_t copy_by_kernel(std::span<const KernelCopy> copies, const Context& context, Copies& engine) {
  const BlockIds ids = block_ids_of(copies);
  if (!ids.do_fit) {
    for (const KernelCopy& copy : copies) {
      MULTIKV_RETURN_IF_FAILED(
          engine.add(reinterpret_cast<void*>(copy.dst), reinterpret_cast<const void*>(copy.src), copy.num_bytes));
    }
    return cudaSuccess;
  }
  const SwapLayer base{reinterpret_cast<const void*>(ids.src), reinterpret_cast<void*>(ids.dst)};
  const Crossover& crossover = crossovers.of(context.device_index, copies[0].direction);
  const SwapKernelWork work = {
      .layers = &base,
      .num_layers = 1,
      .unit_bytes = int64_t{1} << ids.unit_log2,
      .block_bytes = copies[0].num_bytes,
      .most_pairs = static_cast<int64_t>(copies.size()),
      .link_threads = crossover.kernel_threads.load(std::memory_order_relaxed),
  };
  SwapKernel kernel(work, context.stream);
  for (const KernelCopy& copy : copies) {
    MULTIKV_RETURN_IF_FAILED(kernel.add(ids.of_src(copy), ids.of_dst(copy)));
  }
  return kernel.submit();
}

}  // namespace

template <>
cudaError_t launch(const ResolvedSwapBatch& p, const Context& context) {
  bool capturing = false;
  MULTIKV_RETURN_IF_FAILED(is_capturing(context.stream, capturing));
  const bool may_batch = !capturing && has_batches();
  static thread_local Plan plan;
  make_plan(p, context, may_batch, plan);

  Copies engine(context.stream, context.device_index, may_batch && plan.are_visible, p.batch.is_src_access_order_any);
  for (const int64_t i : plan.by_engine) {
    const SwapCopy& copy = p.batch.copies[i];
    MULTIKV_RETURN_IF_FAILED(engine.add(copy.dst, copy.src, copy.num_bytes));
  }
  std::span<const KernelCopy> left = plan.by_kernel;
  while (!left.empty()) {
    const auto end = std::upper_bound(left.begin(), left.end(), left.front(), is_before);
    const size_t count = end - left.begin();
    MULTIKV_RETURN_IF_FAILED(copy_by_kernel(left.first(count), context, engine));
    left = left.subspan(count);
  }
  return engine.submit();
}

}  // namespace multikv::gpu
