#include "core/quotient.h"
#include "cuda/cache/slots.cuh"
#include "cuda/core/fp8_convert.cuh"
#include "cuda/core/grid.h"
#include "cuda/launch.h"
#include "params/rotate_params.h"

namespace multikv::gpu {
namespace {

constexpr int kHeads = 4;  // the number of heads of a token whose pairs a thread moves: they share cosines and sines

// What moves kPairs pairs from one position to another.
template <int kPairs>
struct Angles {
  float old_cos[kPairs], old_sin[kPairs];
  CheckedQuotient square[kPairs];  // divides by old_cos^2 + old_sin^2
  float new_cos[kPairs], new_sin[kPairs];
};

// Reads kCount neighbouring elements of a row of the table as float32.
template <Float kTable, int kCount>
__device__ __forceinline__ void read_table(float* to, const char* from) {
  const auto values = FloatPack<kTable, kCount>::read(from);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = element<kTable>(values.words, i);
}

template <Float kTable, int kPairs>
__device__ __forceinline__ void read_rows(Angles<kPairs>& angles, const char* old_row, const char* new_row,
                                          int64_t num_pairs, int64_t first) {
  constexpr int64_t kBytes = num_bytes(kTable);
  read_table<kTable, kPairs>(angles.old_cos, old_row + first * kBytes);
  read_table<kTable, kPairs>(angles.old_sin, old_row + (num_pairs + first) * kBytes);
  read_table<kTable, kPairs>(angles.new_cos, new_row + first * kBytes);
  read_table<kTable, kPairs>(angles.new_sin, new_row + (num_pairs + first) * kBytes);
}

// Reads the angles of the pairs first, first + 1, ... at two positions.
template <int kPairs>
__device__ __forceinline__ Angles<kPairs> read_angles(const RotateCachedKeysParams& p, int64_t old_position,
                                                      int64_t new_position, int64_t first) {
  Angles<kPairs> angles;
  const char *old_row = p.cos_sin_cache.row(old_position), *new_row = p.cos_sin_cache.row(new_position);
  switch (p.table_dtype) {
    case Float::kFloat32: read_rows<Float::kFloat32>(angles, old_row, new_row, p.num_pairs(), first); break;
    case Float::kFloat16: read_rows<Float::kFloat16>(angles, old_row, new_row, p.num_pairs(), first); break;
    case Float::kBFloat16: read_rows<Float::kBFloat16>(angles, old_row, new_row, p.num_pairs(), first); break;
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    angles.square[i] = CheckedQuotient(angles.old_cos[i] * angles.old_cos[i] + angles.old_sin[i] * angles.old_sin[i]);
  }
  return angles;
}

// Moves pairs. Pair i is elements[x_of(i)] and elements[y_of(i)].
//
//          elements
//   kNeox  x0 x1 x2 x3 y0 y1 y2 y3
//   else   x0 y0 x1 y1 x2 y2 x3 y3
template <int kPairs, bool kNeox>
__device__ __forceinline__ void move_pairs(float* elements, const Angles<kPairs>& angles) {
  const auto x_of = [](int i) { return kNeox ? i : 2 * i; };
  const auto y_of = [](int i) { return kNeox ? kPairs + i : 2 * i + 1; };
  bool can_divide = true;
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float x = elements[x_of(i)], y = elements[y_of(i)];
    elements[x_of(i)] = x * angles.old_cos[i] + y * angles.old_sin[i];
    elements[y_of(i)] = y * angles.old_cos[i] - x * angles.old_sin[i];
    can_divide =
        can_divide && angles.square[i].can_divide(elements[x_of(i)]) && angles.square[i].can_divide(elements[y_of(i)]);
  }
  if (can_divide) {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      const auto fma = [](float a, float b, float c) { return fmaf(a, b, c); };
      elements[x_of(i)] = angles.square[i].divide(elements[x_of(i)], fma);
      elements[y_of(i)] = angles.square[i].divide(elements[y_of(i)], fma);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      elements[x_of(i)] = elements[x_of(i)] / angles.square[i].divisor();
      elements[y_of(i)] = elements[y_of(i)] / angles.square[i].divisor();
    }
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const float x = elements[x_of(i)], y = elements[y_of(i)];
    elements[x_of(i)] = x * angles.new_cos[i] - y * angles.new_sin[i];
    elements[y_of(i)] = y * angles.new_cos[i] + x * angles.new_sin[i];
  }
}

// How keys are stored: as elements of type kDtype.
template <Float kDtype>
struct FloatKeys {
  static constexpr int kBytes = num_bytes(kDtype);
  static constexpr int kWide = 16 / kBytes;  // elements of a wide vector
  __device__ FloatKeys(const RotateCachedKeysParams&, int64_t) {}

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
struct CodedKeys {
  static constexpr int kBytes = 1;
  static constexpr int kWide = 8;
  float scale;
  Element element;
  __device__ CodedKeys(const RotateCachedKeysParams& p, int64_t head)
      : scale(*p.cache.scale_of(head)), element(p.codec().element) {}

  template <int kCount>
  __device__ void decode(float* to, const Pack<kCount>& from) const {
    const auto floats = dequantise<Float::kFloat32, kCount>(from.words, scale, element);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] = __uint_as_float(floats.words[i]);
  }
  template <int kCount>
  __device__ Pack<kCount> encode(const float* from) const {
    const Quotient quotient(scale);
    const auto floats = pack_floats<Float::kFloat32, kCount>([&](int i) { return from[i]; });
    return quantise<Float::kFloat32, kCount>(floats.words, element,
                                             [&](float x) { return divide<Float::kFloat32>(quotient, x); });
  }
};

// The heads that a thread moves, and its kPairs pairs in each of them: the elements of two vectors.
template <class Keys, int kPairs>
struct MovedHeads {
  using Vector = Pack<kPairs * Keys::kBytes>;
  const RotateCachedKeysParams& p;
  char* entry;  // of the token
  int64_t first_head;
  int64_t first_bytes, second_bytes;  // offsets of the vectors from the start of the head

  // Calls with(k, head) for the heads first_head + k that exist.
  template <class With>
  __device__ __forceinline__ void for_each(With with) const {
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      if (first_head + k < p.num_heads) with(k, first_head + k);
    }
  }
  __device__ __forceinline__ char* data(int64_t head) const { return entry + head * p.cache.stride_head_bytes; }
};

template <class Keys, int kPairs>
__device__ __forceinline__ void move_heads(const MovedHeads<Keys, kPairs>& heads, const Angles<kPairs>& angles,
                                           typename MovedHeads<Keys, kPairs>::Vector* first,
                                           typename MovedHeads<Keys, kPairs>::Vector* second) {
  heads.for_each([&](int k, int64_t head) {
    const Keys keys(heads.p, head);
    float elements[2 * kPairs];
    keys.template decode<kPairs>(elements, first[k]);
    keys.template decode<kPairs>(elements + kPairs, second[k]);
    if (heads.p.is_neox) move_pairs<kPairs, true>(elements, angles);
    else move_pairs<kPairs, false>(elements, angles);
    keys.template encode<kPairs>(elements).template write<true>(heads.data(head) + heads.first_bytes);
    keys.template encode<kPairs>(elements + kPairs).template write<true>(heads.data(head) + heads.second_bytes);
  });
}

// Where a token's entry lies, in bytes from the start of the cache, and its positions. The offset is -1 if the token
// does not move.
struct TokenMove {
  int64_t offset, old_position, new_position;
};

__device__ __forceinline__ TokenMove move_of(const RotateCachedKeysParams& p, int64_t token) {
  const PrefetchedIndex slot_index(p.slots.mapping, token);
  const PrefetchedIndex old_index(p.old_positions, token), new_index(p.new_positions, token);
  const SlotOffsets offsets{p.cache.blocks, p.cache.stride_block_bytes, p.cache.stride_row_bytes};
  const int64_t old_position = old_index.value(), new_position = new_index.value();
  const auto is_position = [&](int64_t x) { return static_cast<uint64_t>(x) < static_cast<uint64_t>(p.num_positions); };
  const bool moves = old_position != new_position && is_position(old_position) && is_position(new_position);
  return {moves ? offsets.of(slot_index.value()) : -1, old_position, new_position};
}

// A thread moves kPairs pairs, in kHeads heads of a token, at a time.
//
//               threadIdx                                   blockIdx
//   kPacked     x: tokens    y: vectors   z: groups of heads
//   else        x: vectors   y: groups of heads   z: tokens    x: chunks of tokens   y: parts of the groups of heads
//
// Neighbouring slots of a packed cache are neighbours in memory, so neighbouring threads take neighbouring tokens.
template <class Keys, int kPairs, bool kPacked>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 4)
    rotate_cached_keys_kernel(const MULTIKV_GRID_CONSTANT RotateCachedKeysParams p, int64_t first_group) {
  using Heads = MovedHeads<Keys, kPairs>;
  const unsigned vector_thread = kPacked ? threadIdx.y : threadIdx.x, vector_step = kPacked ? blockDim.y : blockDim.x;
  const unsigned group_thread = kPacked ? threadIdx.z : threadIdx.y, groups = kPacked ? blockDim.z : blockDim.y;
  const unsigned token_thread = kPacked ? threadIdx.x : threadIdx.z, tokens = kPacked ? blockDim.x : blockDim.z;
  const int64_t token = static_cast<int64_t>(blockIdx.x) * tokens + token_thread;
  const int64_t group = first_group + static_cast<int64_t>(blockIdx.y) * groups + group_thread;
  if (token >= p.slots.num_tokens || group * kHeads >= p.num_heads) return;
  const TokenMove move = move_of(p, token);
  if (move.offset < 0) return;
  const auto bytes_of = [&](int64_t element) {  // from the start of a head
    return p.cache.offset_bytes(0, 0, element, Keys::kBytes,
                                [](int64_t x, const Divisor& divisor) { return quotient_of(x, divisor); });
  };
  for (int64_t i = static_cast<int64_t>(vector_thread) * kPairs; i < p.num_pairs(); i += vector_step * kPairs) {
    const int64_t first_element = p.rotary_offset + (p.is_neox ? i : 2 * i);
    const int64_t second_element = first_element + (p.is_neox ? p.num_pairs() : kPairs);
    const Heads heads = {p, p.cache.data + move.offset, group * kHeads, bytes_of(first_element),
                         bytes_of(second_element)};
    typename Heads::Vector first[kHeads], second[kHeads];
    heads.for_each([&](int k, int64_t head) {
      first[k] = Heads::Vector::template read<true>(heads.data(head) + heads.first_bytes);
      second[k] = Heads::Vector::template read<true>(heads.data(head) + heads.second_bytes);
    });
    const Angles<kPairs> angles = read_angles<kPairs>(p, move.old_position, move.new_position, i);
    move_heads(heads, angles, first, second);
  }
}

template <class Keys, int kPairs, bool kPacked>
void launch_kernel(const RotateCachedKeysParams& p, const Context& context) {
  const int64_t num_tokens = p.slots.num_tokens, groups = ceil_div<int64_t>(p.num_heads, kHeads);
  BlockShape shape = block_shape(p.num_pairs() / kPairs, groups, num_tokens, kThreads);
  const int64_t chunks = ceil_div<int64_t>(num_tokens, shape.threads.z);
  const dim3 threads = kPacked ? dim3(shape.threads.z, shape.threads.x, shape.threads.y) : shape.threads;
  for_each_grid(chunks, shape, 1, [&](dim3 grid, int64_t first_group) {
    rotate_cached_keys_kernel<Keys, kPairs, kPacked><<<grid, threads, 0, context.stream>>>(p, first_group);
  });
}

// Whether all vectors of Keys::kWide elements are aligned, and none crosses the end of a vector of a packed cache.
template <class Keys>
bool is_wide(const RotateCachedKeysParams& p) {
  constexpr int kVectorBytes = Keys::kWide * Keys::kBytes;
  const int64_t vector_size = p.cache.vector_size.signed_value();
  const AlignmentBits elements = AlignmentBits(p.rotary_offset) | p.num_pairs() | vector_size;
  const AlignmentBits table = p.cos_sin_cache.alignment_bits() | p.num_pairs() * num_bytes(p.table_dtype);
  return elements.widest(Keys::kWide) == Keys::kWide && p.cache.alignment_bits().widest(kVectorBytes) == kVectorBytes &&
         table.widest(16) == 16;
}

template <class Keys>
void launch_keys(const RotateCachedKeysParams& p, const Context& context) {
  if (!is_wide<Keys>(p)) return launch_kernel<Keys, 1, false>(p, context);
  const bool is_packed = p.cache.stride_vector_bytes != 0;
  if (is_packed) launch_kernel<Keys, Keys::kWide, true>(p, context);
  else launch_kernel<Keys, Keys::kWide, false>(p, context);
}

}  // namespace

template <>
cudaError_t launch(const RotateCachedKeysParams& p, const Context& context) {
  switch (p.codec().element) {
    case Element::kFloat32: launch_keys<FloatKeys<Float::kFloat32>>(p, context); break;
    case Element::kFloat16: launch_keys<FloatKeys<Float::kFloat16>>(p, context); break;
    case Element::kBFloat16: launch_keys<FloatKeys<Float::kBFloat16>>(p, context); break;
    case Element::kE4M3FN:
    case Element::kE5M2:
    case Element::kE4M3FNUZ:
    case Element::kE5M2FNUZ: launch_keys<CodedKeys>(p, context); break;
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  return cudaGetLastError();
}

}  // namespace multikv::gpu
