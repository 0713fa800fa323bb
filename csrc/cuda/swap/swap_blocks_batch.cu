// swap_blocks_batch: large copies go to the copy engines, the other copies to a kernel. Each launch of the kernel makes
// copies of one size and one direction.
#include <algorithm>
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

  constexpr bool is_before(const KernelCopy& other) const {
    return direction != other.direction ? direction < other.direction : num_bytes < other.num_bytes;
  }
};

// Which copies the kernel makes, and which the copy engines.
struct Plan {
  std::vector<KernelCopy> by_kernel;  // ordered by direction and size
  std::vector<int64_t> by_engine;     // indices into the copies of the batch
  bool are_visible;                   // whether a GPU can read and write all copies
};

// Whether a kernel on the context's device makes a copy.
bool is_for_kernel(const ResolvedCopy& copy, int64_t num_bytes, const Context& context, bool may_batch) {
  const auto& [src, dst] = copy;
  if (!src.is_visible() || !dst.is_visible()) return false;
  if (src.device != context.device_index && dst.device != context.device_index) return false;
  if (src.device >= 0 && dst.device >= 0 && src.device != dst.device) return false;
  const Direction direction = direction_of(src.device, dst.device);
  const Crossover& crossover = crossovers.of(context.device_index, direction);
  return num_bytes < copy_engine_from(crossover, may_batch && direction != Direction::kWithinDevice);
}

void make_plan(const ResolvedSwapBatch& p, const Context& context, bool may_batch, Plan& plan) {
  plan.by_kernel.clear();
  plan.by_engine.clear();
  plan.are_visible = true;
  for (int64_t i = 0; i < p.batch.num_copies; ++i) {
    const ResolvedCopy& copy = p.resolved[i];
    const int64_t num_bytes = p.batch.copies[i].num_bytes;
    plan.are_visible = plan.are_visible && copy.src.is_visible() && copy.dst.is_visible();
    if (is_for_kernel(copy, num_bytes, context, may_batch)) {
      plan.by_kernel.push_back(
          {copy.src.gpu_address, copy.dst.gpu_address, num_bytes, direction_of(copy.src.device, copy.dst.device)});
    } else {
      plan.by_engine.push_back(i);
    }
  }
  const auto is_before = [](const KernelCopy& a, const KernelCopy& b) { return a.is_before(b); };
  if (!std::is_sorted(plan.by_kernel.begin(), plan.by_kernel.end(), is_before))
    std::stable_sort(plan.by_kernel.begin(), plan.by_kernel.end(), is_before);
}

// How addresses become the kernel's block ids. An id is the distance from the lowest address, in units of unit_bytes. A
// unit is the largest power of two that divides all distances.
struct BlockIds {
  uintptr_t src, dst;  // the lowest addresses
  uintptr_t unit_bytes;
  bool do_fit;  // whether all ids have 32 bits
};

BlockIds block_ids_of(std::span<const KernelCopy> copies) {
  uintptr_t src = copies[0].src, dst = copies[0].dst, src_end = src, dst_end = dst, offsets = 0;
  for (const KernelCopy& copy : copies) {
    src = std::min(src, copy.src), dst = std::min(dst, copy.dst);
    src_end = std::max(src_end, copy.src), dst_end = std::max(dst_end, copy.dst);
  }
  for (const KernelCopy& copy : copies) offsets |= (copy.src - src) | (copy.dst - dst);
  const uintptr_t unit = offsets == 0 ? 16 : offsets & -offsets;
  return {src, dst, unit, std::max(src_end - src, dst_end - dst) / unit <= std::numeric_limits<uint32_t>::max()};
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
      .unit_bytes = static_cast<int64_t>(ids.unit_bytes),
      .block_bytes = copies[0].num_bytes,
      .most_pairs = static_cast<int64_t>(copies.size()),
      .link_threads = crossover.kernel_threads.load(std::memory_order_relaxed),
  };
  SwapKernel kernel(work, context.stream);
  for (const KernelCopy& copy : copies) {
    MULTIKV_RETURN_IF_FAILED(kernel.add((copy.src - ids.src) / ids.unit_bytes, (copy.dst - ids.dst) / ids.unit_bytes));
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
  const std::span<const KernelCopy> by_kernel = plan.by_kernel;
  for (size_t begin = 0, end = 0; begin < by_kernel.size(); begin = end) {
    while (end < by_kernel.size() && !by_kernel[begin].is_before(by_kernel[end])) ++end;
    MULTIKV_RETURN_IF_FAILED(copy_by_kernel(by_kernel.subspan(begin, end - begin), context, engine));
  }
  return engine.submit();
}

}  // namespace multikv::gpu
