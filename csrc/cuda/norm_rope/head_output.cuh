// Writes normed and rotated heads to query.out, to key.out and to caches.
#pragma once

#include "cuda/cache/packed_keys.cuh"
#include "cuda/norm_rope/token_parts.cuh"

namespace multikv::gpu {

// The scale that a head is quantised with; 1 if it is not quantised.
__device__ __forceinline__ float scale_of(const QkNormRopeCacheParams& p, const TokenPart& part, int64_t head) {
  const HeadCache& cache = part.cache(p);
  const float* scale = part.is_query() ? p.query_scale : cache.scale;
  const int64_t stride = part.is_query() ? 0 : cache.scale_stride_head;
  return scale == nullptr ? 1.0f : scale[head * stride];
}

// Writes the heads of a part to query.out, or to key.out and a slot of a cache of any layout.
struct HeadWriter {
  const QkNormRopeCacheParams& p;
  const TokenPart& part;
  bool is_stored;  // in query.out or in a cache
  BlockOffset at;  // the slot

  __device__ __forceinline__ HeadWriter(const QkNormRopeCacheParams& p, const TokenPart& part, int64_t slot)
      : p(p), part(part), is_stored(part.is_query() || is_slot(p.blocks(), slot)),
        at(is_stored && !part.is_query() ? split(p.blocks(), slot) : BlockOffset{0, 0}) {}

  // Writes kVectors vectors of kCount elements of a head. Vector i exists if exists[i], and begins at element dims[i].
  template <Float kDtype, int kCount, int kVectors>
  __device__ __forceinline__ void write(int64_t head, const int (&dims)[kVectors], const bool (&exists)[kVectors],
                                        float scale, const FloatPack<kDtype, kCount> (&vectors)[kVectors]) const {
    if (part.kind == HeadKind::kKey && p.key.out.data != nullptr) {
      char* to = p.key.out.head(part.token, head);
#pragma unroll
      for (int i = 0; i < kVectors; ++i) {
        if (exists[i]) vectors[i].template write<true>(to + dims[i] * num_bytes(kDtype));
      }
    }
    if (!is_stored) return;
    const Element element = part.is_query() ? p.query_element : p.codec().element;
    if (is_float(element)) return store<num_bytes(kDtype)>(head, dims, exists, vectors);
    const Quantise<kDtype, kCount> quantise(scale, element);
    Pack<kCount> codes[kVectors];
#pragma unroll
    for (int i = 0; i < kVectors; ++i) codes[i] = quantise(vectors[i]);
    store<1>(head, dims, exists, codes);
  }

 private:
  __device__ __forceinline__ char* element(int64_t head, int dim, int64_t element_bytes) const {
    if (part.is_query()) return p.query.out.head(part.token, head) + dim * element_bytes;
    return part.cache(p).element(at, head, dim, element_bytes, divide_index);
  }
  template <int64_t kElementBytes, int kBytes, int kVectors>
  __device__ __forceinline__ void store(int64_t head, const int (&dims)[kVectors], const bool (&exists)[kVectors],
                                        const Pack<kBytes> (&vectors)[kVectors]) const {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if (!exists[i]) continue;
      if (!part.is_query() && part.cache(p).packs_slots) {
        store_rows<kElementBytes>(head, dims[i], vectors[i]);
      } else {
        vectors[i].template write<true>(element(head, dims[i], kElementBytes));
      }
    }
  }
  // Writes a vector to a cache that packs slots: each element lies in another row (PackedCache).
  template <int64_t kElementBytes, int kBytes>
  __device__ __forceinline__ void store_rows(int64_t head, int dim, const Pack<kBytes>& vector) const {
#pragma unroll
    for (int i = 0; i < static_cast<int>(kBytes / kElementBytes); ++i) {
      Pack<kElementBytes> one;
      one.words[0] = vector.words[i * kElementBytes / 4] >> (i * kElementBytes % 4 * 8);
      one.write(element(head, dim + i, kElementBytes));
    }
  }
};

}  // namespace multikv::gpu
