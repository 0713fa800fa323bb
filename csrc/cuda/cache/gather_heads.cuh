// Gathers heads that are contiguous in the cache.
#pragma once

#include "cuda/cache/gather_rows.cuh"
#include "cuda/core/fp8_convert.cuh"
#include "params/gather_params.h"

namespace multikv::gpu {

// What a gather does with one vector, which it reads from the cache as a Pack<kCacheBytes>.
template <class Move>
concept GatherMove = requires(char* to, const Pack<Move::kCacheBytes>& value, float scale, Element element) {
  // The bytes of a vector in the cache and in the output.
  { Move::kCacheBytes } -> std::same_as<const int&>;
  { Move::kOutputBytes } -> std::same_as<const int&>;
  // Whether the cache has scales.
  { Move::kIsScaled } -> std::same_as<const bool&>;
  // Writes a vector whose elements are stored as `element` in the cache.
  Move::write(to, value, scale, element);
};

// Copies kWidth bytes.
template <int kWidth>
struct CopyVector {
  static constexpr int kCacheBytes = kWidth, kOutputBytes = kWidth;
  static constexpr bool kIsScaled = false;
  __device__ static void write(char* to, const Pack<kWidth>& value, float, Element) { value.template write<true>(to); }
};

// Dequantises kElements codes.
template <Float kDtype, int kElements>
struct DequantiseVector {
  static constexpr int kCacheBytes = kElements, kOutputBytes = kElements * static_cast<int>(num_bytes(kDtype));
  static constexpr bool kIsScaled = true;
  __device__ static void write(char* to, const Pack<kElements>& codes, float scale, Element element) {
    dequantise<kDtype, kElements>(codes.words, scale, element).template write<true>(to);
  }
};

// Returns the number of vectors of `elements` elements of the cache. It is at least 1, also for an empty head, because
// a Divisor must not be 0.
inline Divisor vectors_of(const HeadGather& gather, int64_t elements, int vector_bytes) {
  return Divisor::of(std::max<int64_t>(gather.cache.codec.num_bytes(elements) / vector_bytes, 1));
}

// A HeadGather in units of vectors of `vector_bytes` bytes of the cache.
struct HeadPlane {
  HeadGather gather;
  Divisor head_vectors;  // vectors of a head
  int64_t num_vectors;   // of all heads

  HeadPlane(const HeadGather& gather, int vector_bytes)
      : gather(gather), head_vectors(vectors_of(gather, gather.head_size, vector_bytes)),
        num_vectors(gather.cache.codec.num_bytes(gather.num_elements()) / vector_bytes) {}
};

// The entries of kPlanes planes, whose vectors are counted one plane after the other. No plane is empty, and each head
// is contiguous in the cache. With kIsOneHead, each plane has one head.
template <GatherMove Move, int kPlanes, bool kIsOneHead>
struct HeadEntry : NoRest {
  static constexpr int kVectorBytes = std::max(Move::kCacheBytes, Move::kOutputBytes);
  static constexpr int kBlocks = kIsOneHead && kPlanes == 1 ? 10 : 8;
  struct Pointer {
    const char* planes[kPlanes];
    __device__ explicit operator bool() const { return planes[0] != nullptr; }
  };
  struct Place {
    bool is_last_plane;
    int64_t cache_offset;  // from the start of the plane's entry in the cache
    char* to;              // in output row 0
    int64_t stride_token_bytes;
    float scale;
  };
  using Value = Pack<Move::kCacheBytes>;
  HeadPlane planes[kPlanes];
  Sequences gathered_sequences;

  template <class... Gathers>
  explicit HeadEntry(const Sequences& sequences, const Gathers&... gathers)
      : planes{HeadPlane(gathers, Move::kCacheBytes)...}, gathered_sequences(sequences) {}
  __host__ __device__ const Sequences& sequences() const { return gathered_sequences; }
  __host__ __device__ int64_t vectors() const {
    return planes[0].num_vectors + (kPlanes == 2 ? planes[kPlanes - 1].num_vectors : 0);
  }
  __device__ Pointer find(BlockOffset at) const {
    Pointer pointer;
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) {
      const PackedCache& cache = planes[i].gather.cache;
      pointer.planes[i] = cache.block(at.block) + at.offset * cache.stride_row_bytes;
    }
    return pointer;
  }
  __device__ Place place(int64_t vector) const {
    const bool is_last_plane = kPlanes == 2 && vector >= planes[0].num_vectors;
    if (is_last_plane) vector -= planes[0].num_vectors;
    const HeadPlane& plane = planes[is_last_plane ? kPlanes - 1 : 0];
    const auto& [cache, packs_slots, dst, num_heads, head_size] = plane.gather;
    const int64_t head = kIsOneHead ? 0 : static_cast<int64_t>(quotient_of(vector, plane.head_vectors));
    const int64_t in_head = kIsOneHead ? vector : vector - head * plane.head_vectors.signed_value();
    float scale = 1.0f;
    if (Move::kIsScaled && head < num_heads) scale = *cache.scale_of(head);
    return {is_last_plane, head * cache.stride_head_bytes + in_head * Move::kCacheBytes,
            dst.head(0, head) + in_head * Move::kOutputBytes, dst.stride_token_bytes, scale};
  }
  __device__ Value read(const Pointer& from, const Place& place) const {
    const char* entry = place.is_last_plane ? from.planes[kPlanes - 1] : from.planes[0];
    return Value::template read<true>(entry + place.cache_offset);
  }
  __device__ void write(int64_t token, const Place& place, const Value& value) const {
    Move::write(place.to + token * place.stride_token_bytes, value, place.scale, planes[0].gather.cache.codec.element);
  }
};

inline AlignmentBits cache_alignment_bits(const HeadGather& gather) {
  return gather.cache.alignment_bits() | gather.cache.codec.num_bytes(gather.cache.vector_size.signed_value());
}

// Launches the gather of one or two planes by wide or narrow moves. `Narrow` is used if memory is not aligned to the
// vectors of `Wide`. Only `Wide` has a kernel that is specialised for one head, because narrow vectors are slower in
// any case.
template <class Wide, class Narrow, class... Gathers>
cudaError_t launch_moves(bool is_wide, const Sequences& sequences, const Context& context, const Gathers&... gathers) {
  constexpr int kPlanes = sizeof...(Gathers);
  if (!is_wide) return launch_gather(HeadEntry<Narrow, kPlanes, false>(sequences, gathers...), context);
  if (((gathers.num_heads == 1) && ...)) {
    return launch_gather(HeadEntry<Wide, kPlanes, true>(sequences, gathers...), context);
  }
  return launch_gather(HeadEntry<Wide, kPlanes, false>(sequences, gathers...), context);
}

// Launches the gather of one plane (entries) or two planes (keys and values), none of them empty.
template <class... Gathers>
cudaError_t launch_heads(const Codec& codec, Float dtype, const Sequences& sequences, const Context& context,
                         const Gathers&... gathers) {
  const AlignmentBits cache = (cache_alignment_bits(gathers) | ...), dst = (gathers.dst.alignment_bits() | ...);
  if (!codec.is_float()) {
    const bool is_wide = cache.widest(8) == 8 && dst.widest(16) == 16;
    return with_dtype(dtype, [&]<Float kDtype>() {
      return launch_moves<DequantiseVector<kDtype, 8>, DequantiseVector<kDtype, 1>>(is_wide, sequences, context,
                                                                                    gathers...);
    });
  }
  const int width = (cache | dst).widest(16);
  if (width >= 8) {
    return launch_moves<CopyVector<16>, CopyVector<8>>(width == 16, sequences, context, gathers...);
  }
  if (width == 4)
    return launch_gather(HeadEntry<CopyVector<4>, sizeof...(Gathers), false>(sequences, gathers...), context);
  return launch_gather(HeadEntry<CopyVector<2>, sizeof...(Gathers), false>(sequences, gathers...), context);
}

}  // namespace multikv::gpu
