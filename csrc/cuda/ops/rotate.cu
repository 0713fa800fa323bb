#include <concepts>

#include "core/quotient.h"
#include "cuda/cache/slots.cuh"
#include "cuda/core/fp8_convert.cuh"
#include "cuda/core/grid.h"
#include "cuda/core/rope_angles.cuh"
#include "cuda/launch.h"
#include "params/rotate_params.h"

namespace multikv::gpu {
namespace {

// A divisor of rotated elements, with what it takes to divide faster than by an IEEE division.
template <class T>
concept PairQuotient = requires(const T& quotient, float x, float (*fma)(float, float, float)) {
  // Whether divide(x) is the correctly rounded quotient.
  { quotient.can_divide(x) } -> std::same_as<bool>;
  { quotient.divide(x, fma) } -> std::same_as<float>;
};

// The angles of kPairs neighbouring pairs at a token's two positions.
template <int kPairs>
struct MoveAngles {
  Angles<kPairs> from, to;

  __device__ __forceinline__ float square(int i) const {
    return from.cosines[i] * from.cosines[i] + from.sines[i] * from.sines[i];
  }
};

// Reads the angles of the pairs i, i + 1, ... from two rows of the table.
template <int kPairs>
__device__ __forceinline__ MoveAngles<kPairs> read_move_angles(const RotateCachedKeysParams& p, const char* from,
                                                               const char* to, int64_t i) {
  const auto read = [&]<Float kTable>() -> MoveAngles<kPairs> {
    using Vectors = AngleVectors<kTable, kPairs>;
    return {Angles<kPairs>::of(Vectors::read(from, p.num_pairs(), i)),
            Angles<kPairs>::of(Vectors::read(to, p.num_pairs(), i))};
  };
  switch (p.table_dtype) {
    case Float::kFloat32: return read.template operator()<Float::kFloat32>();
    case Float::kFloat16: return read.template operator()<Float::kFloat16>();
    case Float::kBFloat16: break;
  }
  return read.template operator()<Float::kBFloat16>();
}

// Rarely called, and not inlined, because a division takes many instructions.
__device__ __noinline__ float ieee_quotient(float x, float divisor) { return x / divisor; }

// Moves pairs from a token's old position to its new one: undoes the rotation by the angles `from`, and rotates by the
// angles `to`. squares[i] divides by angles.square(i). Pair i is elements[x_of(i)] and elements[y_of(i)].
//
//          elements
//   kNeox  x0 x1 x2 x3 y0 y1 y2 y3
//   else   x0 y0 x1 y1 x2 y2 x3 y3
template <int kPairs, bool kNeox, PairQuotient Square>
__device__ __forceinline__ void move_pairs(float* elements, const MoveAngles<kPairs>& angles, const Square* squares) {
  const auto x_of = [](int i) { return kNeox ? i : 2 * i; };
  const auto y_of = [](int i) { return kNeox ? kPairs + i : 2 * i + 1; };
  const auto fma = [](float a, float b, float c) { return fmaf(a, b, c); };
  float xs[kPairs], ys[kPairs];
  bool can_divide = true;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float x = elements[x_of(i)], y = elements[y_of(i)];
    xs[i] = x * angles.from.cosines[i] + y * angles.from.sines[i];
    ys[i] = y * angles.from.cosines[i] - x * angles.from.sines[i];
    can_divide &= squares[i].can_divide(xs[i]);
    can_divide &= squares[i].can_divide(ys[i]);
  }
  if (can_divide) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      xs[i] = squares[i].divide(xs[i], fma);
      ys[i] = squares[i].divide(ys[i], fma);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      xs[i] = ieee_quotient(xs[i], angles.square(i));
      ys[i] = ieee_quotient(ys[i], angles.square(i));
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    elements[x_of(i)] = xs[i] * angles.to.cosines[i] - ys[i] * angles.to.sines[i];
    elements[y_of(i)] = ys[i] * angles.to.cosines[i] + xs[i] * angles.to.sines[i];
  }
}

// How keys are stored: as elements of type kDtype.
template <Float kDtype>
struct FloatKeys {
  static constexpr int kBytes = num_bytes(kDtype);
  static constexpr int kWide = 8 / kBytes;  // elements of a wide vector
  static constexpr int kBlocks = 6;         // resident thread blocks that registers must suffice for
  struct Scale {
    __device__ static Scale read(const RotateCachedKeysParams&, int64_t) { return {}; }
  };
  __device__ explicit FloatKeys(const Scale&) {}

  template <int kCount>
  __device__ void decode(float* to, const Pack<kCount * kBytes>& from) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = element<kDtype>(from.words, i);
  }
  template <int kCount>
  __device__ Pack<kCount * kBytes> encode(const float* from) const {
    return pack_floats<kDtype, kCount>([&](int i) { return from[i]; });
  }
};

// How keys are stored: as fp8 codes.
template <Element kElement>
struct CodedKeys {
  static constexpr int kBytes = 1;
  static constexpr int kWide = 4;
  static constexpr int kBlocks = 5;
  struct Scale {
    float value;
    __device__ static Scale read(const RotateCachedKeysParams& p, int64_t head) { return {*p.cache.scale_of(head)}; }
  };
  float scale;
  Quotient quotient;
  __device__ explicit CodedKeys(const Scale& scale) : scale(scale.value), quotient(scale.value) {}

  template <int kCount>
  __device__ void decode(float* to, const Pack<kCount>& from) const {
    const auto floats = dequantise<Float::kFloat32, kCount>(from.words, scale, kElement);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = __uint_as_float(floats.words[i]);
  }
  template <int kCount>
  __device__ Pack<kCount> encode(const float* from) const {
    const auto floats = pack_floats<Float::kFloat32, kCount>([&](int i) { return from[i]; });
    return quantise<Float::kFloat32, kCount>(floats.words, kElement, [&](float x) { return divide(quotient, x); });
  }
};

// A thread's pairs of one head, as they are stored: two vectors of kBytes bytes, which are neighbours if `is_joined`.
template <int kBytes>
struct Vectors {
  Pack<kBytes> first, second;

  __device__ static Vectors read(const char* at_first, const char* at_second, bool is_joined) {
    if constexpr (kBytes >= 4) {
      if (is_joined) {
        const auto both = Pack<2 * kBytes>::template read<true>(at_first);
        Vectors vectors;
#pragma unroll
        for (int i = 0; i < kBytes / 4; ++i) {
          vectors.first.words[i] = both.words[i];
          vectors.second.words[i] = both.words[kBytes / 4 + i];
        }
        return vectors;
      }
    }
    return {Pack<kBytes>::template read<true>(at_first), Pack<kBytes>::template read<true>(at_second)};
  }
  __device__ void write(char* at_first, char* at_second, bool is_joined) const {
    if constexpr (kBytes >= 4) {
      if (is_joined) {
        Pack<2 * kBytes> both;
#pragma unroll
        for (int i = 0; i < kBytes / 4; ++i) {
          both.words[i] = first.words[i];
          both.words[kBytes / 4 + i] = second.words[i];
        }
        return both.template write<true>(at_first);
      }
    }
    first.template write<true>(at_first);
    second.template write<true>(at_second);
  }
};

// The heads that a thread moves, and its kPairs pairs in each of them.
template <class Keys, int kPairs, int kHeads>
struct MovedHeads {
  const RotateCachedKeysParams& p;
  char* entry;  // of the token
  int64_t first_head;
  int64_t first_bytes, second_bytes;  // offsets of the vectors from the start of the head
  Vectors<kPairs * Keys::kBytes> vectors[kHeads];
  typename Keys::Scale first_scale;

  __device__ __forceinline__ bool exists(int k) const { return first_head + k < p.num_heads; }
  __device__ __forceinline__ char* head(int k) const { return entry + (first_head + k) * p.cache.stride_head_bytes; }
  __device__ __forceinline__ bool is_joined() const { return kPairs > 1 && !p.is_neox; }

  __device__ __forceinline__ void read() {
#pragma unroll
    for (int k = 0; k < kHeads && exists(k); ++k) {
      vectors[k] = vectors[k].read(head(k) + first_bytes, head(k) + second_bytes, is_joined());
    }
    first_scale = Keys::Scale::read(p, first_head);
  }
  template <PairQuotient Square>
  __device__ __forceinline__ void move(const MoveAngles<kPairs>& angles, const Square* squares) const {
    Keys keys(first_scale);
    // The loop ends at the first head that does not exist. If it skipped such heads, HIP's compiler would keep
    // `squares` in scratch memory.
#pragma unroll
    for (int k = 0; k < kHeads && exists(k); ++k) {
      if (k > 0 && p.cache.scale_stride_head != 0) keys = Keys(Keys::Scale::read(p, first_head + k));
      float elements[2 * kPairs];
      keys.template decode<kPairs>(elements, vectors[k].first);
      keys.template decode<kPairs>(elements + kPairs, vectors[k].second);
      if (p.is_neox) move_pairs<kPairs, true>(elements, angles, squares);
      else move_pairs<kPairs, false>(elements, angles, squares);
      const Vectors<kPairs * Keys::kBytes> moved = {keys.template encode<kPairs>(elements),
                                                    keys.template encode<kPairs>(elements + kPairs)};
      moved.write(head(k) + first_bytes, head(k) + second_bytes, is_joined());
    }
  }
  // The squares, cos^2 + sin^2, are all close to 1, unless the cosines and sines of the table are multiplied by a
  // factor, as for YaRN. So the quotients for divisors close to 1 are tried first.
  __device__ __forceinline__ void move(const MoveAngles<kPairs>& angles) const {
    const auto fma = [](float a, float b, float c) { return fmaf(a, b, c); };
    bool are_near_one = true;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) are_near_one &= NearOneQuotient::takes(angles.square(i));
    if (are_near_one) {
      NearOneQuotient squares[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; ++i) squares[i] = NearOneQuotient(angles.square(i), fma);
      move(angles, squares);
    } else {
      CheckedQuotient squares[kPairs];
#pragma unroll
      for (int i = 0; i < kPairs; ++i) squares[i] = CheckedQuotient(angles.square(i));
      move(angles, squares);
    }
  }
};

// The offset of a token's entry from the start of the cache in bytes, and the token's positions. The offset is -1 if
// the token does not move.
struct TokenMove {
  int64_t offset, old_position, new_position;
};

__device__ __forceinline__ TokenMove move_of(const RotateCachedKeysParams& p, int64_t token) {
  const PrefetchedIndex slot_index(p.slots.mapping, token);
  const PrefetchedIndex old_index(p.old_positions, token), new_index(p.new_positions, token);
  const int64_t old_position = old_index.value(), new_position = new_index.value(), slot = slot_index.value();
  const auto is_position = [&](int64_t x) { return static_cast<uint64_t>(x) < static_cast<uint64_t>(p.num_positions); };
  // Without branches between the conditions, the three loads are in flight at once.
  bool moves = old_position != new_position;
  moves &= is_position(old_position);
  moves &= is_position(new_position);
  moves &= is_slot(p.cache.blocks, slot);
  if (!moves) return {-1, 0, 0};
  const BlockOffset at = split(p.cache.blocks, slot);
  return {at.block * p.cache.stride_block_bytes + at.offset * p.cache.stride_row_bytes, old_position, new_position};
}

// A thread moves kPairs pairs, in kHeads heads of a token, at a time.
//
//   threadIdx, packed      x: `in_group` neighbouring vectors, then tokens   y: the other vectors   z: groups of heads
//   threadIdx, otherwise   x: vectors   y: groups of heads   z: tokens
//   blockIdx               x: chunks of tokens   y: groups of heads
//
// Neighbouring slots of a packed cache are neighbours in memory, so neighbouring threads take neighbouring tokens.
// `in_group` is the number of vectors of kPairs elements in one vector of the cache (vector_size elements), or 1.
struct MoveShape {
  bool is_packed;
  SmallDivisor in_group;
  int64_t first_group;  // of heads
};

struct ThreadPart {
  unsigned token, tokens;  // `tokens`, `vectors`, `groups`: of the thread block
  unsigned vector, vectors;
  unsigned group, groups;

  __device__ static ThreadPart of(const MoveShape& shape) {
    if (!shape.is_packed) return {threadIdx.z, blockDim.z, threadIdx.x, blockDim.x, threadIdx.y, blockDim.y};
    const auto in_group = static_cast<unsigned>(shape.in_group.value);
    const auto token = static_cast<unsigned>(shape.in_group.divide(static_cast<int>(threadIdx.x)));
    return {token,
            static_cast<unsigned>(shape.in_group.divide(static_cast<int>(blockDim.x))),
            threadIdx.y * in_group + (threadIdx.x - token * in_group),
            blockDim.y * in_group,
            threadIdx.z,
            blockDim.z};
  }
};

template <class Keys, int kPairs, int kHeads>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, Keys::kBlocks)
    rotate_cached_keys_kernel(const MULTIKV_GRID_CONSTANT RotateCachedKeysParams p, const MoveShape shape) {
  using Heads = MovedHeads<Keys, kPairs, kHeads>;
  const ThreadPart part = ThreadPart::of(shape);
  const int64_t token = static_cast<int64_t>(blockIdx.x) * part.tokens + part.token;
  const int64_t group = shape.first_group + static_cast<int64_t>(blockIdx.y) * part.groups + part.group;
  if (token >= p.slots.num_tokens || group * kHeads >= p.num_heads) return;
  const TokenMove move = move_of(p, token);
  if (move.offset < 0) return;
  const auto bytes_of = [&](int64_t element) {  // from the start of a head
    if (p.cache.stride_vector_bytes == 0) return element * Keys::kBytes;
    return p.cache.offset_bytes(0, 0, element, Keys::kBytes,
                                [](int64_t x, const Divisor& divisor) { return quotient_of(x, divisor); });
  };
  const char* const from = p.cos_sin_cache.row(move.old_position);
  const char* const to = p.cos_sin_cache.row(move.new_position);
  for (int64_t i = static_cast<int64_t>(part.vector) * kPairs; i < p.num_pairs(); i += part.vectors * kPairs) {
    const int64_t first_element = p.rotary_offset + (p.is_neox ? i : 2 * i);
    const int64_t second_element = first_element + (p.is_neox ? p.num_pairs() : kPairs);
    Heads heads = {.p = p,
                   .entry = p.cache.data + move.offset,
                   .first_head = group * kHeads,
                   .first_bytes = bytes_of(first_element),
                   .second_bytes = bytes_of(second_element)};
    heads.read();
    heads.move(read_move_angles<kPairs>(p, from, to, i));
  }
}

template <class Keys, int kPairs, int kHeads>
void launch_kernel(const RotateCachedKeysParams& p, const Context& context) {
  const int64_t num_tokens = p.slots.num_tokens, groups = ceil_div<int64_t>(p.num_heads, kHeads);
  const BlockShape block = block_shape(p.num_pairs() / kPairs, groups, num_tokens, kThreads);
  const auto [x, y, z] = block.threads;
  const int64_t vector_size = p.cache.vector_size.signed_value();
  constexpr unsigned kMaxGroups = 64;  // CUDA's limit of blockDim.z
  const bool is_packed = p.cache.stride_vector_bytes != 0 && y <= kMaxGroups;
  unsigned in_group = 1;
  if (is_packed && kPairs > 1 && vector_size / kPairs <= x && x % (vector_size / kPairs) == 0) {
    in_group = static_cast<unsigned>(vector_size / kPairs);
  }
  const dim3 threads = is_packed ? dim3(z * in_group, x / in_group, y) : block.threads;
  for_each_grid(ceil_div<int64_t>(num_tokens, z), block, 1, [&](dim3 grid, int64_t first_group) {
    rotate_cached_keys_kernel<Keys, kPairs, kHeads>
        <<<grid, threads, 0, context.stream>>>(p, MoveShape{is_packed, SmallDivisor::of(in_group), first_group});
  });
}

// Whether all vectors of Keys::kWide elements are aligned, and none crosses the end of a vector of a packed cache.
template <class Keys>
bool is_wide(const RotateCachedKeysParams& p) {
  // If the elements of a pair are neighbours (not is_neox), the two vectors of a thread are accessed as one.
  const int size = p.is_neox ? Keys::kWide : 2 * Keys::kWide, bytes = size * Keys::kBytes;
  const int table_bytes = Keys::kWide * static_cast<int>(num_bytes(p.table_dtype));
  const AlignmentBits elements =
      AlignmentBits(p.rotary_offset) | p.cache.vector_size.signed_value() | (p.is_neox ? p.num_pairs() : p.rotary_size);
  const AlignmentBits table = p.cos_sin_cache.alignment_bits() | p.num_pairs() * num_bytes(p.table_dtype);
  return elements.widest(size) == size && p.cache.alignment_bits().widest(bytes) == bytes &&
         table.widest(table_bytes) == table_bytes;
}

// A thread moves several heads, which share cosines and sines. But with few tokens, one head for each thread gives the
// shortest chain of dependent instructions.
template <class Keys>
void launch_keys(const RotateCachedKeysParams& p, const Context& context) {
  constexpr int kHeads = 4;
  constexpr int64_t kResidentThreads = 768;  // of a multiprocessor
  if (!is_wide<Keys>(p)) return launch_kernel<Keys, 1, kHeads>(p, context);
  const int64_t threads = p.slots.num_tokens * p.num_heads * (p.num_pairs() / Keys::kWide);
  if (threads <= context.num_multiprocessors * kResidentThreads) launch_kernel<Keys, Keys::kWide, 1>(p, context);
  else launch_kernel<Keys, Keys::kWide, kHeads>(p, context);
}

}  // namespace

template <>
cudaError_t launch(const RotateCachedKeysParams& p, const Context& context) {
  switch (p.codec().element) {
    case Element::kFloat32: launch_keys<FloatKeys<Float::kFloat32>>(p, context); break;
    case Element::kFloat16: launch_keys<FloatKeys<Float::kFloat16>>(p, context); break;
    case Element::kBFloat16: launch_keys<FloatKeys<Float::kBFloat16>>(p, context); break;
    case Element::kE4M3FN: launch_keys<CodedKeys<Element::kE4M3FN>>(p, context); break;
    case Element::kE5M2: launch_keys<CodedKeys<Element::kE5M2>>(p, context); break;
    case Element::kE4M3FNUZ: launch_keys<CodedKeys<Element::kE4M3FNUZ>>(p, context); break;
    case Element::kE5M2FNUZ: launch_keys<CodedKeys<Element::kE5M2FNUZ>>(p, context); break;
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  return cudaGetLastError();
}

}  // namespace multikv::gpu
