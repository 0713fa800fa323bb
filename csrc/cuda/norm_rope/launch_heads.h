// The launches of kernels that norm, rotate and cache heads. They are defined in heads.cu, packed_heads.cu and
// elements.cu.
#pragma once

#include "cuda/launch.h"
#include "params/norm_rope_params.h"

namespace multikv::gpu {

// Calls with<kDtype, kTable>() for the dtypes of the elements and of the table.
template <class With>
void with_dtypes(const QkNormRopeCacheParams& p, With with) {
  with_dtype(p.dtype, [&]<Float kDtype>() {
    const bool has_float_table = p.rope.is_on && p.rope.table_dtype != kDtype;
    if (has_float_table) with.template operator()<kDtype, Float::kFloat32>();
    else with.template operator()<kDtype, kDtype>();
  });
}

// Heads that consist of vectors of 16 bytes; launch_heads() also uses vectors of 8 bytes, if there are very few heads.
// Up to 32 lanes share a head, which they hold in registers (head_vectors.cuh). launch_heads() is for caches of the
// flash layout, launch_packed_heads() for those of the packed layout.
void launch_heads(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context);
void launch_packed_heads(const QkNormRopeCacheParams& p, const Context& context);
// Heads that consist of vectors of 16 bytes, with NormOrder::kAllHeads: all queries of a token are normed as one row,
// and all keys of a token as another. Caches have the flash layout. Returns false, and launches nothing, if a token has
// too many heads or the head size is no power of two.
bool launch_head_rows(const QkNormRopeCacheParams& p, const Context& context);
// Heads of any size and alignment, element by element.
void launch_elements(const QkNormRopeCacheParams& p, const Context& context);

}  // namespace multikv::gpu
