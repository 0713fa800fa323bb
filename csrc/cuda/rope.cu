#include "mla.cuh"

namespace multikv::gpu {
namespace {

constexpr int kThreads = 256;
constexpr int kHeads = 2;          // of a rotating thread
constexpr int kLatentTokens = 16;  // of a block that writes kv_c

// Two kinds of thread blocks: the first `rotating_blocks` rotate, the others write kv_c to the cache.
struct RopeShape {
  int vectors, rows, tokens;  // of a rotating block's threads; a row is kHeads heads
  int row_blocks;
  int64_t rotating_blocks;
};

// kPairs pairs (x, y) of a head: x' = x * cos - y * sin, y' = y * cos + x * sin as PyTorch computes them eagerly: each product
// is rounded to the table's dtype, the sum to the input's (a 16-bit table has the input's dtype).
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
__device__ inline void cache_key(const ConcatAndCacheMlaParams& p, char* entry, int64_t at,
                                 const Pack<kElements * num_bytes(kDtype)>& value) {
  if (p.is_ds_mla) {
    char* to = entry + DsMlaEntry::kRopeAt + at * num_bytes(kDtype);
    if constexpr (kElements > 1) {
      value.write(to);
    } else {  // an entry may begin at any byte
      to[0] = static_cast<char>(value.words[0]);
      to[1] = static_cast<char>(value.words[0] >> 8);
    }
  } else if (p.format == CacheFormat::kSame) {
    value.write(entry + (p.latent_size + at) * num_bytes(kDtype));
  } else {
    const Quantise<kDtype, kElements> quantise(*p.scale, p.format);
    quantise(value).write(entry + p.latent_size + at);
  }
}

// Byte offset of the token's entry; -1 if it has none.
__device__ inline int64_t entry_offset(const ConcatAndCacheMlaParams& p, int64_t slot) {
  const int64_t bytes = p.is_ds_mla ? 1 : num_bytes(p.format, p.dtype);
  return slot_offset(p.slots, slot, p.kv_cache_stride_block * bytes, p.kv_cache_stride_slot * bytes);
}

// One vector of pairs of kHeads heads of a token. The head after the last of q_pe is the key.
template <Float kDtype, Float kTable, int kPairs>
__device__ inline void rotate_heads(const ConcatAndCacheMlaRopeFusedParams& p, const RopeShape& shape) {
  constexpr int64_t kBytes = num_bytes(kDtype), kTableBytes = num_bytes(kTable);
  using Vector = Pack<kPairs * kBytes>;
  using Table = Pack<kPairs * kTableBytes>;
  const ConcatAndCacheMlaParams& write = p.write;
  const int block = blockIdx.x / shape.row_blocks, row_block = blockIdx.x - block * shape.row_blocks;
  const int row = threadIdx.x / shape.vectors, z = row / shape.rows;
  const int64_t token = static_cast<int64_t>(block) * shape.tokens + z;
  const int64_t first_head = static_cast<int64_t>(row_block) * shape.rows + (row - z * shape.rows);
  const int64_t head_step = static_cast<int64_t>(shape.row_blocks) * shape.rows;
  if (z >= shape.tokens || token >= write.slots.num_tokens) return;

  const int64_t half = write.rope_size / 2;
  const int64_t position = p.positions.at(token);
  if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(p.num_positions)) return;
  const char* table = static_cast<const char*>(p.cos_sin_cache) + position * p.cos_sin_cache_stride_position * kTableBytes;
  const auto data_of = [&](int64_t head) {
    return head == p.num_heads ? static_cast<char*>(p.k_pe) + token * write.k_pe_stride_token * kBytes
                               : static_cast<char*>(p.q_pe) + (token * p.q_pe_stride_token + head * p.q_pe_stride_head) * kBytes;
  };
  for (int64_t i = (threadIdx.x - row * shape.vectors) * kPairs; i < half; i += shape.vectors * kPairs) {
    const int64_t at_first = p.is_neox ? i : 2 * i, at_second = p.is_neox ? half + i : 2 * i + kPairs;
    Vector first[kHeads], second[kHeads];
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      const int64_t head = first_head + k * head_step;
      if (head > p.num_heads) continue;
      first[k] = Vector::read(data_of(head) + at_first * kBytes);
      second[k] = Vector::read(data_of(head) + at_second * kBytes);
    }
    const Table cos_vector = Table::read(table + i * kTableBytes), sin_vector = Table::read(table + (half + i) * kTableBytes);
    float cosines[kPairs], sines[kPairs];
#pragma unroll
    for (int k = 0; k < kPairs; ++k) {
      cosines[k] = element<kTable>(cos_vector.words, k);
      sines[k] = element<kTable>(sin_vector.words, k);
    }
#pragma unroll
    for (int k = 0; k < kHeads; ++k) {
      const int64_t head = first_head + k * head_step;
      if (head > p.num_heads) continue;
      if (p.is_neox) rotate<kDtype, kTable, kPairs, true>(first[k], second[k], cosines, sines);
      else rotate<kDtype, kTable, kPairs, false>(first[k], second[k], cosines, sines);
      first[k].write(data_of(head) + at_first * kBytes);
      second[k].write(data_of(head) + at_second * kBytes);
      if (head < p.num_heads) continue;
      const int64_t offset = entry_offset(write, write.slots.mapping.at(token));
      if (offset < 0) continue;
      char* entry = static_cast<char*>(write.kv_cache) + offset;
      cache_key<kDtype, kPairs>(write, entry, at_first, first[k]);
      cache_key<kDtype, kPairs>(write, entry, at_second, second[k]);
    }
  }
}

// The latent vectors of the tokens of a block.
template <Float kDtype, bool kWide>
__device__ inline void cache_latent(const ConcatAndCacheMlaRopeFusedParams& p, int64_t block) {
  constexpr int kElementBytes = num_bytes(kDtype);
  const ConcatAndCacheMlaParams& write = p.write;
  const auto index_of = [&](int64_t t) {
    const int64_t position = p.positions.at(t), slot = write.slots.mapping.at(t);
    return static_cast<uint64_t>(position) < static_cast<uint64_t>(p.num_positions) ? slot : -1;
  };
  const int64_t first = block * kLatentTokens;
  if (write.is_ds_mla) {
    if constexpr (kDtype != Float::kFloat32) {
      constexpr int64_t kGroups = kThreads / 32;
      char* entries[kLatentTokens / kGroups];
#pragma unroll
      for (int i = 0; i < kLatentTokens / kGroups; ++i) {
        const int64_t token = first + threadIdx.x / 32 + i * kGroups;
        const int64_t offset = entry_offset(write, token < write.slots.num_tokens ? index_of(token) : -1);
        entries[i] = offset < 0 ? nullptr : static_cast<char*>(write.kv_cache) + offset;
      }
      write_ds_mla_latent<kDtype, kWide>(write, first + threadIdx.x / 32, kGroups, threadIdx.x % 32, entries);
    }
    return;
  }
  constexpr int kLanes = 64, kStep = kThreads / kLanes, kUnroll = kLatentTokens / kStep;
  const int64_t token = first + threadIdx.x / kLanes;
  if (write.format == CacheFormat::kSame) {
    write_entries<Copy<kWide ? 16 : kElementBytes>, kUnroll>(write, index_of, 0, token, kStep, threadIdx.x % kLanes, kLanes);
  } else {
    write_entries<Quantise<kDtype, kWide ? 8 : 1>, kUnroll>(write, index_of, 0, token, kStep, threadIdx.x % kLanes, kLanes);
  }
}

template <Float kDtype, Float kTable, bool kWide>
__global__ void __launch_bounds__(kThreads)
    concat_and_cache_mla_rope_fused_kernel(const MULTIKV_GRID_CONSTANT ConcatAndCacheMlaRopeFusedParams p,
                                           const RopeShape shape) {
  constexpr int kPairs = kWide ? 16 / num_bytes(kDtype) : 1;
  if (blockIdx.x < shape.rotating_blocks) rotate_heads<kDtype, kTable, kPairs>(p, shape);
  else cache_latent<kDtype, kWide>(p, blockIdx.x - shape.rotating_blocks);
}

template <Float kDtype, Float kTable, bool kWide>
void launch_width(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  constexpr int kPairs = kWide ? 16 / num_bytes(kDtype) : 1;
  const int64_t num_tokens = p.write.slots.num_tokens;
  const int64_t vectors = (p.write.rope_size / 2 + kPairs - 1) / kPairs;
  RopeShape shape{};
  if (vectors > 0) {
    const BlockShape block = block_shape(vectors, p.num_heads / kHeads + 1, num_tokens);
    shape = {.vectors = static_cast<int>(block.threads.x),
             .rows = static_cast<int>(block.threads.y),
             .tokens = static_cast<int>(block.threads.z),
             .row_blocks = static_cast<int>(block.row_blocks),
             .rotating_blocks = (num_tokens + block.threads.z - 1) / block.threads.z * block.row_blocks};
  }
  const int64_t latent_blocks = (num_tokens + kLatentTokens - 1) / kLatentTokens;
  concat_and_cache_mla_rope_fused_kernel<kDtype, kTable, kWide>
      <<<static_cast<unsigned>(shape.rotating_blocks + latent_blocks), kThreads, 0, context.stream>>>(p, shape);
}

template <Float kDtype, Float kTable>
void launch_dtypes(const ConcatAndCacheMlaRopeFusedParams& p, const Context& context) {
  constexpr int64_t kBytes = num_bytes(kDtype), kTableBytes = num_bytes(kTable);
  const int width = common_alignment(
      16, {source_alignment(p.write), cache_alignment(p.write), p.write.rope_size / 2 * kBytes, address(p.q_pe),
           p.q_pe_stride_token * kBytes, p.q_pe_stride_head * kBytes, address(p.cos_sin_cache),
           p.cos_sin_cache_stride_position * kTableBytes});
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
