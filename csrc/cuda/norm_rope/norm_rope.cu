#include "core/alignment.h"
#include "cuda/norm_rope/launch_heads.h"

namespace multikv::gpu {
namespace {

// Whether vectors of 16 bytes of the elements are aligned everywhere, and none crosses the border of the rotated part
// or of a vector of a packed cache. For the values of a packed cache, write_packed_values() checks it.
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

// Launches a kernel for vectors if there is one for this call. Returns whether it has.
bool launch_vectors(const QkNormRopeCacheParams& p, const Context& context) {
  constexpr int64_t kCodes = 8;  // packed values are quantised 8 at a time
  if (!is_wide(p) || (p.is_packed && p.head_size % kCodes != 0)) return false;
  if (p.order == NormOrder::kAllHeads) return !p.is_packed && launch_head_rows(p, context);
  if (p.is_packed) launch_packed_heads(p, context);
  else launch_heads(p, false, context);
  return true;
}

}  // namespace

template <>
cudaError_t launch(const QkNormRopeCacheParams& p, const Context& context) {
  if (!launch_vectors(p, context)) launch_elements(p, context);
  return cudaGetLastError();
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
  if (is_wide(in_place)) launch_heads(in_place, true, context);
  else launch_elements(in_place, context);
  return cudaGetLastError();
}

}  // namespace multikv::gpu
