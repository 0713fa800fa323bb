#include "cuda/cache/mla_entry.cuh"

namespace multikv::gpu {
namespace {

constexpr int kHeads = 2;         // of a rotating thread
constexpr int kLatentTokens = 8;  // of a block that writes kv_c

// How thread blocks rotate: threads over the vectors of a head, rows (kHeads heads of queries, or the key), tokens.
struct RotatingBlocks {
  SmallDivisor vectors, rows;
  int tokens;
  Divisor row_blocks;
  int64_t num_blocks;

  static RotatingBlocks of(int64_t vectors, int64_t rows, int64_t num_tokens) {
    if (vectors == 0 || rows == 0) return {};
    const BlockShape shape = block_shape(vectors, rows, num_tokens, kThreads);
    const auto [x, y, z] = shape.threads;
    return {SmallDivisor::of(x), SmallDivisor::of(y), static_cast<int>(z), Divisor::of(shape.row_blocks),
            (num_tokens + z - 1) / z * shape.row_blocks};
  }
};

// Three kinds of blocks, in this order: those that rotate queries; that rotate keys and cache them; that cache kv_c.
struct RopeShape {
  RotatingBlocks queries, keys;
};

// kPairs pairs (x, y) of a head: x' = x * cos - y * sin, y' = y * cos + x * sin as PyTorch computes them eagerly: each
// product is rounded to the table's dtype, the sum to the input's (a 16-bit table has the input's dtype).
template <Float kDtype, Float kTable, int kPairs, bool kNeox>
__device__ inline void rotate(Pack<kPairs * num_bytes(kDtype)>& first, Pack<kPairs * num_bytes(kDtype)>& second,
                              const float* cosines, const float* sines) {
  const auto round = [](float2 x) -> float2 {
    if constexpr (kTable == Float::kFloat32) return x;
    const uint32_t bits = rounded<kTable>(x.x, x.y);
    return {element<kTable>(&bits, 0), element<kTable>(&bits, 1)};
  };
  float inputs[2 * kPairs], outputs[2 * kPairs];
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    inputs[i] = element<kDtype>(first.words, i);
    inputs[kPairs + i] = element<kDtype>(second.words, i);
  }
#pragma unroll
  for (int i = 0; i < kPairs; ++i) {
    const int at_x = kNeox ? i : 2 * i, at_y = kNeox ? kPairs + i : 2 * i + 1;
    const float x = inputs[at_x], y = inputs[at_y];
    const float2 by_cos = round({x * cosines[i], y * cosines[i]}), by_sin = round({x * sines[i], y * sines[i]});
    outputs[at_x] = by_cos.x - by_sin.y;
    outputs[at_y] = by_cos.y + by_sin.x;
  }
  first = pack_floats<kDtype, kPairs>([&](int i) { return outputs[i]; });
  second = pack_floats<kDtype, kPairs>([&](int i) { return outputs[kPairs + i]; });
}

// A vector of the rotated key, its elements `at`, ..., to the token's entry.
template <Float kDtype, int kElements>
__device__ inline void cache_key(const ConcatAndCacheMlaParams& p, char* entry, int64_t at, float scale,
                                 const Pack<kElements * num_bytes(kDtype)>& value) {
  if (p.is_ds_mla) {
    char* to = entry + DsMlaEntry::kRopeAt + at * num_bytes(kDtype);
    if constexpr (kElements > 1) {
      value.template write<true>(to);
    } else {  // an entry may begin at any byte
      to[0] = static_cast<char>(value.words[0]);
      to[1] = static_cast<char>(value.words[0] >> 8);
    }
  } else if (p.format == CacheFormat::kSame) {
    value.template write<true>(entry + (p.latent_size + at) * num_bytes(kDtype));
  } else {
    const Quantise<kDtype, kElements> quantise(scale, p.format);
    quantise(value).template write<true>(entry + p.latent_size + at);
  }
}

// One vector of pairs of kRows heads of a token, or of its key.
template <Float kDtype, Float kTable, int kPairs, bool kIsKey>
__device__ inline void rotate_heads(const ConcatAndCacheMlaRopeFusedParams& p, const RotatingBlocks& shape,
                                    int64_t block) {
  constexpr int64_t kBytes = num_bytes(kDtype), kTableBytes = num_bytes(kTable);
  constexpr int kRows = kIsKey ? 1 : kHeads;
  using Vector = Pack<kPairs * kBytes>;
  using Table = Pack<kPairs * kTableBytes>;
  const ConcatAndCacheMlaParams& write = p.write;
  const auto row_blocks = static_cast<int64_t>(shape.row_blocks.value);
  const auto tile = static_cast<int64_t>(quotient_of(block, shape.row_blocks)), row_block = block - tile * row_blocks;
  const int thread = static_cast<int>(threadIdx.x), row = shape.vectors.divide(thread), z = shape.rows.divide(row);
  const int64_t token = tile * shape.tokens + z;
  const int64_t first_head = row_block * shape.rows.value + (row - z * shape.rows.value);
  const int64_t head_step = row_blocks * shape.rows.value, num_heads = kIsKey ? 1 : p.num_heads;
  if (z >= shape.tokens || token >= write.slots.num_tokens) return;

  const int64_t half = write.rope_size / 2;
  const PendingIndex at_position(p.positions, token), at_slot(write.slots.mapping, token);
  const float scale = kIsKey ? Quantise<kDtype, kPairs>::scale(write.scale) : 1.0f;
  char* data = kIsKey ? static_cast<char*>(p.k_pe) + token * write.k_pe_stride_token * kBytes
                      : static_cast<char*>(p.q_pe) + token * p.q_pe_stride_token * kBytes;
  const int64_t stride_head = p.q_pe_stride_head * kBytes;
  for (int64_t i = (thread - row * shape.vectors.value) * kPairs; i < half; i += shape.vectors.value * kPairs) {
    const int64_t at_first = p.is_neox ? i : 2 * i, at_second = p.is_neox ? half + i : 2 * i + kPairs;
    Vector first[kRows], second[kRows];
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t head = first_head + k * head_step;
      if (head >= num_heads) continue;
      first[k] = Vector::template read<true>(data + head * stride_head + at_first * kBytes);
      second[k] = Vector::template read<true>(data + head * stride_head + at_second * kBytes);
    }
    const int64_t position = at_position.value();
    if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(p.num_positions)) return;
    const char* table =
        static_cast<const char*>(p.cos_sin_cache) + position * p.cos_sin_cache_stride_position * kTableBytes;
    const Table cos_vector = Table::read(table + i * kTableBytes),
                sin_vector = Table::read(table + (half + i) * kTableBytes);
    float cosines[kPairs], sines[kPairs];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      cosines[k] = element<kTable>(cos_vector.words, k);
      sines[k] = element<kTable>(sin_vector.words, k);
    }
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      const int64_t head = first_head + k * head_step;
      if (head >= num_heads) continue;
      if (p.is_neox) rotate<kDtype, kTable, kPairs, true>(first[k], second[k], cosines, sines);
      else rotate<kDtype, kTable, kPairs, false>(first[k], second[k], cosines, sines);
      first[k].template write<true>(data + head * stride_head + at_first * kBytes);
      second[k].template write<true>(data + head * stride_head + at_second * kBytes);
    }
    if constexpr (kIsKey) {
      char* entry = entry_at(write, at_slot.value());
      if (entry == nullptr) continue;
      cache_key<kDtype, kPairs>(write, entry, at_first, scale, first[0]);
      cache_key<kDtype, kPairs>(write, entry, at_second, scale, second[0]);
    }
  }
}

// The latent vectors of the tokens of a block.
template <Float kDtype, bool kWide>
__device__ inline void cache_latent(const ConcatAndCacheMlaRopeFusedParams& p, int64_t block) {
  constexpr int kElementBytes = num_bytes(kDtype);
  const ConcatAndCacheMlaParams& write = p.write;
  struct Index {
    PendingIndex position, slot;
    int64_t num_positions;
    __device__ int64_t value() const {
      return static_cast<uint64_t>(position.value()) < static_cast<uint64_t>(num_positions) ? slot.value() : -1;
    }
  };
  const auto index_of = [&](int64_t t) -> Index {
    return {{p.positions, t}, {write.slots.mapping, t}, p.num_positions};
  };
  const int64_t first = block * kLatentTokens;
  if (write.is_ds_mla) {
    if constexpr (kDtype != Float::kFloat32) {
      constexpr int64_t kGroups = kThreads / 32;
      for (int64_t token = first + threadIdx.x / 32; token < first + kLatentTokens; token += kGroups) {
        const bool is_token = token < write.slots.num_tokens;
        const Index slot = index_of(is_token ? token : 0);
        write_ds_mla_latent<kDtype, kWide, true>(write, token, threadIdx.x % 32,
                                                 [&] { return is_token ? entry_at(write, slot.value()) : nullptr; });
      }
    }
    return;
  }
  constexpr int kLanes = 64, kStep = kThreads / kLanes, kUnroll = kLatentTokens / kStep;
  if (write.format == CacheFormat::kSame) {
    write_entries<Copy<kWide ? 16 : kElementBytes>, kUnroll, true>(write, index_of, 0, first, threadIdx.x / kLanes,
                                                                   kStep, threadIdx.x % kLanes, kLanes);
  } else {
    write_entries<Quantise<kDtype, kWide ? 8 : 1>, kUnroll, true>(write, index_of, 0, first, threadIdx.x / kLanes,
                                                                  kStep, threadIdx.x % kLanes, kLanes);
  }
}

template <Float kDtype, Float kTable, bool kWide>
__global__ void __launch_bounds__(kThreads)
    concat_and_cache_mla_rope_fused_kernel(const MULTIKV_GRID_CONSTANT ConcatAndCacheMlaRopeFusedParams p,
                                           const RopeShape shape) {
  constexpr int kPairs = kWide ? 16 / num_bytes(kDtype) : 1;
  int64_t block = blockIdx.x;
  if (block < shape.queries.num_blocks) return rotate_heads<kDtype, kTable, kPairs, false>(p, shape.queries, block);
  block -= shape.queries.num_blocks;
  if (block < shape.keys.num_blocks) return rotate_heads<kDtype, kTable, kPairs, true>(p, shape.keys, block);
  cache_latent<kDtype, kWide>(p, block - shape.keys.num_blocks);
}

template <Float kDtype, Float kTable, bool kWide>
void launch_width(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  constexpr int kPairs = kWide ? 16 / num_bytes(kDtype) : 1;
  const int64_t num_tokens = p.write.slots.num_tokens, vectors = p.write.rope_size / 2 / kPairs;
  const RopeShape shape = {RotatingBlocks::of(vectors, (p.num_heads + kHeads - 1) / kHeads, num_tokens),
                           RotatingBlocks::of(vectors, 1, num_tokens)};
  const int64_t latent_blocks = (num_tokens + kLatentTokens - 1) / kLatentTokens;
  const auto blocks = static_cast<unsigned>(shape.queries.num_blocks + shape.keys.num_blocks + latent_blocks);
  concat_and_cache_mla_rope_fused_kernel<kDtype, kTable, kWide><<<blocks, kThreads, 0, context.stream>>>(p, shape);
}

template <Float kDtype, Float kTable>
void launch_dtypes(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  constexpr int64_t kBytes = num_bytes(kDtype), kTableBytes = num_bytes(kTable);
  const int width =
      common_alignment(16, {source_alignment(p.write), cache_alignment(p.write), p.write.rope_size / 2 * kBytes,
                            address(p.q_pe), p.q_pe_stride_token * kBytes, p.q_pe_stride_head * kBytes,
                            address(p.cos_sin_cache), p.cos_sin_cache_stride_position * kTableBytes});
  if (width == 16) launch_width<kDtype, kTable, true>(p, context);
  else launch_width<kDtype, kTable, false>(p, context);
}

}  // namespace

void launch(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  const bool is_float32_table = p.table_dtype == Float::kFloat32;
  switch (p.write.dtype) {
    case Float::kFloat32: return launch_dtypes<Float::kFloat32, Float::kFloat32>(p, context);
    case Float::kFloat16:
      if (is_float32_table) return launch_dtypes<Float::kFloat16, Float::kFloat32>(p, context);
      return launch_dtypes<Float::kFloat16, Float::kFloat16>(p, context);
    case Float::kBFloat16:
      if (is_float32_table) return launch_dtypes<Float::kBFloat16, Float::kFloat32>(p, context);
      return launch_dtypes<Float::kBFloat16, Float::kBFloat16>(p, context);
  }
}

}  // namespace multikv::gpu
