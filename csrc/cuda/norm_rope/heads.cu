#include "cuda/launch.h"
#include "cuda/norm_rope/row_kernel.cuh"

namespace multikv::gpu {
namespace {

// Calls with<kDtype, kTable>() for the dtypes of the elements and of the table.
template <class With>
void with_dtypes(const QkNormRopeCacheParams& p, With with) {
  with_dtype(p.dtype, [&]<Float kDtype>() {
    const bool has_float_table = p.rope.is_on && p.rope.table_dtype != kDtype;
    if (has_float_table) with.template operator()<kDtype, Float::kFloat32>();
    else with.template operator()<kDtype, kDtype>();
  });
}

// Whether vectors of 16 bytes of the elements are aligned everywhere, and none crosses the border of the rotated part
// or of a vector of a packed cache. Values in packed caches are written element by element.
bool is_wide(const QkNormRopeCacheParams& p) {
  constexpr int kBytes = 16, kMaxVectors = 64;
  const int64_t elements = kBytes / num_bytes(p.dtype);
  AlignmentBits dims(p.head_size);
  AlignmentBits bits = p.query.source.alignment_bits() | p.key.source.alignment_bits() | p.value.alignment_bits() |
                       AlignmentBits(p.query.weight.data) | AlignmentBits(p.key.weight.data);
  if (p.rope.is_on) {
    dims = dims | p.rope.offset | (p.rope.is_neox ? p.rope.num_pairs() : p.rope.size);
    dims = dims | p.rope.num_pairs();
    bits = bits | AlignmentBits(p.rope.cos_sin_cache.data) | p.rope.cos_sin_cache.stride_token_bytes;
  }
  if (p.key.out.data != nullptr) bits = bits | p.key.out.alignment_bits();
  const auto outputs = [&](Element element) { return static_cast<int>(num_bytes(element, elements)); };
  const auto cache_is_wide = [&](const HeadCache& cache) {
    if (cache.packs_slots || cache.data == nullptr) return true;
    const int width = outputs(cache.codec.element);
    return (cache.alignment_bits() | cache.codec.num_bytes(cache.vector_size.signed_value())).widest(width) == width;
  };
  const int query_width = outputs(p.query_element);
  return dims.widest(static_cast<int>(elements)) == elements && p.head_size / elements <= kMaxVectors &&
         bits.widest(kBytes) == kBytes && p.query.out.alignment_bits().widest(query_width) == query_width &&
         cache_is_wide(p.key_cache) && cache_is_wide(p.value_cache);
}

template <Float kDtype, Float kTable>
void launch_heads(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context) {
  HeadGroups groups{};
  groups.lanes = HeadLanes::of(p.rope, p.head_size, 16 / static_cast<int>(num_bytes(kDtype)));
  groups.queries = p.query.num_heads;
  groups.keys = p.key.num_heads;
  const int64_t per_token = groups.queries + groups.keys * (p.value.data == nullptr ? 1 : 2);
  groups.per_token = Divisor::of(per_token);
  groups.num_groups = p.slots.num_tokens * per_token;
  groups.only_rotated = only_rotated;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(groups.num_groups * groups.lanes.count, kThreads));
  if (p.order == NormOrder::kNone) {
    head_kernel<kDtype, kTable, false><<<blocks, kThreads, 0, context.stream>>>(groups, p);
  } else {
    head_kernel<kDtype, kTable, true><<<blocks, kThreads, 0, context.stream>>>(groups, p);
  }
}

template <Float kDtype, Float kTable>
void launch_rows(const QkNormRopeCacheParams& p, const Context& context) {
  const bool is_one_row = p.order == NormOrder::kAllHeads;
  TokenRowsShape shape{};
  shape.tasks = HeadTasks::of(p);
  shape.queries = is_one_row ? (p.query.num_heads > 0 ? 1 : 0) : p.query.num_heads;
  shape.keys = is_one_row ? 1 : p.key.num_heads;
  const int64_t per_token = shape.queries + shape.keys * (p.value.data == nullptr ? 1 : 2);
  shape.per_token = Divisor::of(per_token);
  shape.num_rows = p.slots.num_tokens * per_token;
  row_kernel<kDtype, kTable><<<static_cast<unsigned>(shape.num_rows), kThreads, 0, context.stream>>>(shape, p);
}

cudaError_t launch_cache(const QkNormRopeCacheParams& p, bool only_rotated, const Context& context) {
  with_dtypes(p, [&]<Float kDtype, Float kTable>() {
    if (p.order == NormOrder::kAllHeads || !is_wide(p)) launch_rows<kDtype, kTable>(p, context);
    else launch_heads<kDtype, kTable>(p, only_rotated, context);
  });
  return cudaGetLastError();
}

}  // namespace

template <>
cudaError_t launch(const QkNormRopeCacheParams& p, const Context& context) {
  return launch_cache(p, false, context);
}

// Queries and keys are rotated in place, and there is no cache. Without a key, the query takes its place.
template <>
cudaError_t launch(const RotaryEmbeddingParams& p, const Context& context) {
  QkNormRopeCacheParams in_place{};
  in_place.slots.num_tokens = p.num_tokens;
  in_place.rope = p.rope;
  in_place.query.source = in_place.query.out = p.query;
  in_place.query.num_heads = p.num_query_heads;
  in_place.key.source = in_place.key.out = p.key.data == nullptr ? p.query : p.key;
  in_place.key.num_heads = p.key.data == nullptr ? 0 : p.num_key_heads;
  in_place.query_element = element_of(p.dtype);
  in_place.dtype = p.dtype;
  in_place.head_size = p.head_size;
  in_place.key_cache.blocks = {0, Divisor::of(1)};
  in_place.order = NormOrder::kNone;
  return launch_cache(in_place, true, context);
}

}  // namespace multikv::gpu
