// Gathers heads that are contiguous in the cache, or that packed keys split into vectors.
#pragma once

#include "cuda/cache/gather_rows.cuh"
#include "cuda/core/fp8_convert.cuh"
#include "params/gather_params.h"

namespace multikv::gpu {

// What a gather does with one vector: it reads the vector from the cache, and writes it to the output.
template <class Move>
concept GatherMove =
    requires(const char* from, char* to, const float* scale, const typename Move::Value& value, Element element) {
      // The bytes of a vector in the cache and in the output.
      { Move::kCacheBytes } -> std::same_as<const int&>;
      { Move::kOutputBytes } -> std::same_as<const int&>;
      // Issues the loads of a vector and of its scale.
      { Move::read(from, scale) } -> std::same_as<typename Move::Value>;
      // Returns the value of a vector that has been read, and its scale.
      { Move::value_of(Pack<Move::kCacheBytes>{}, 1.0f) } -> std::same_as<typename Move::Value>;
      // Writes a vector whose elements are stored as `element` in the cache.
      Move::write(to, value, element);
    };

// Copies kWidth bytes.
template <int kWidth>
struct CopyVector {
  static constexpr int kCacheBytes = kWidth, kOutputBytes = kWidth;
  using Value = Pack<kWidth>;
  __device__ static Value read(const char* from, const float*) { return Value::template read<true>(from); }
  __device__ static Value value_of(const Value& value, float) { return value; }
  __device__ static void write(char* to, const Value& value, Element) { value.template write<true>(to); }
};

// Dequantises kElements codes.
template <Float kDtype, int kElements>
struct DequantiseVector {
  static constexpr int kCacheBytes = kElements, kOutputBytes = kElements * static_cast<int>(num_bytes(kDtype));
  struct Value {
    Pack<kElements> codes;
    float scale;
  };
  __device__ static Value read(const char* from, const float* scale) {
    return {Pack<kElements>::template read<true>(from), *scale};
  }
  __device__ static Value value_of(const Pack<kElements>& codes, float scale) { return {codes, scale}; }
  __device__ static void write(char* to, const Value& value, Element element) {
    dequantise<kDtype, kElements>(value.codes.words, value.scale, element).template write<true>(to);
  }
};

// A HeadGather in units of vectors of `vector_bytes` bytes of the cache.
struct HeadPlane {
  HeadGather gather;
  Divisor head_vectors;   // vectors of a head
  Divisor piece_vectors;  // vectors of what is contiguous in the cache: a head, or a vector of packed keys
  int64_t num_vectors;    // of all heads

  HeadPlane(const HeadGather& gather, int vector_bytes)
      : gather(gather), head_vectors(divisor(gather.head_size, vector_bytes)),
        piece_vectors(divisor(gather.cache.vector_size.signed_value(), vector_bytes)),
        num_vectors(gather.cache.codec.num_bytes(gather.num_elements()) / vector_bytes) {}

 private:
  Divisor divisor(int64_t elements, int vector_bytes) const {  // an empty head has no vectors, but 0 divides nothing
    return Divisor::of(std::max<int64_t>(gather.cache.codec.num_bytes(elements) / vector_bytes, 1));
  }
};

// The entries of kPlanes planes, whose vectors are counted one plane after the other. With kIsOneHead, each plane has
// one head, which is contiguous.
template <class Move, int kPlanes, bool kIsOneHead>
struct HeadEntry : NoRest {
  static constexpr int kVectorBytes = std::max(Move::kCacheBytes, Move::kOutputBytes);
  static constexpr int kBlocks = kIsOneHead && kPlanes == 1 ? 10 : 8;
  struct Pointer {
    const char* planes[kPlanes];
    __device__ explicit operator bool() const { return planes[0] != nullptr; }
  };
  using Value = typename Move::Value;
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
  __device__ Value read(const Pointer& from, int64_t vector) const {
    const int plane = plane_of(vector);
    const auto& [cache, packs_slots, dst, num_heads, head_size] = planes[plane].gather;
    const char* entry = plane == 0 ? from.planes[0] : from.planes[kPlanes - 1];
    if constexpr (kIsOneHead) return Move::read(entry + vector * Move::kCacheBytes, cache.scale);
    const auto head = static_cast<int64_t>(quotient_of(vector, planes[plane].head_vectors));
    const int64_t in_head = vector - head * planes[plane].head_vectors.signed_value();
    const auto piece = static_cast<int64_t>(quotient_of(in_head, planes[plane].piece_vectors));
    const int64_t in_piece = in_head - piece * planes[plane].piece_vectors.signed_value();
    return Move::read(
        entry + head * cache.stride_head_bytes + piece * cache.stride_vector_bytes + in_piece * Move::kCacheBytes,
        cache.scale_of(head));
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    const int plane = plane_of(vector);
    const TokenHeads& dst = planes[plane].gather.dst;
    const Element element = planes[0].gather.cache.codec.element;
    if constexpr (kIsOneHead) return Move::write(dst.row(token) + vector * Move::kOutputBytes, value, element);
    const auto head = static_cast<int64_t>(quotient_of(vector, planes[plane].head_vectors));
    const int64_t in_head = vector - head * planes[plane].head_vectors.signed_value();
    Move::write(dst.head(token, head) + in_head * Move::kOutputBytes, value, element);
  }

 private:
  // Returns the plane of a vector, and makes the vector count from the first of this plane.
  __device__ int plane_of(int64_t& vector) const {
    if (kPlanes == 1 || vector < planes[0].num_vectors) return 0;
    vector -= planes[0].num_vectors;
    return kPlanes - 1;
  }
};

inline AlignmentBits cache_alignment_bits(const HeadGather& gather) {
  return gather.cache.alignment_bits() | gather.cache.codec.num_bytes(gather.cache.vector_size.signed_value());
}

inline bool is_one_head(const HeadGather& gather) {
  return gather.num_heads == 1 && gather.cache.vector_size.signed_value() == gather.head_size;
}

// Launches the gather of one or two planes by wide or narrow moves. `Narrow` is used if memory is not aligned to the
// vectors of `Wide`; so narrow that their number hardly matters, its vectors are not specialised for one head.
template <class Wide, class Narrow, class... Gathers>
cudaError_t launch_moves(bool is_wide, const Sequences& sequences, const Context& context, const Gathers&... gathers) {
  constexpr int kPlanes = sizeof...(Gathers);
  if (!is_wide) return launch_gather(HeadEntry<Narrow, kPlanes, false>(sequences, gathers...), context);
  if ((is_one_head(gathers) && ...)) {
    return launch_gather(HeadEntry<Wide, kPlanes, true>(sequences, gathers...), context);
  }
  return launch_gather(HeadEntry<Wide, kPlanes, false>(sequences, gathers...), context);
}

// Launches the gather of one plane (entries) or two planes (keys and values).
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
