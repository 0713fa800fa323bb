#include <algorithm>

#include "cuda/norm_rope/launch_heads.h"
#include "cuda/norm_rope/row_kernel.cuh"

namespace multikv::gpu {

void launch_elements(const QkNormRopeCacheParams& p, const Context& context) {
  const bool is_one_row = p.order == NormOrder::kAllHeads;
  const int64_t heads_per_part = is_one_row ? std::max(p.query.num_heads, p.key.num_heads) : 1;
  const TokenParts parts = TokenParts::of(p, heads_per_part, p.value.data != nullptr);
  const auto blocks = static_cast<unsigned>(parts.count(p.slots.num_tokens));
  with_dtypes(p, [&]<Float kDtype, Float kTable>() {
    row_kernel<kDtype, kTable><<<blocks, kThreads, 0, context.stream>>>(parts, RowSides::of(p), HeadTasks::of(p), p);
  });
}

}  // namespace multikv::gpu
