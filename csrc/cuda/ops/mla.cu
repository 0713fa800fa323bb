#include <algorithm>
#include <type_traits>

#include "cuda/cache/mla_entry.cuh"

namespace multikv::gpu {
namespace {

// Returns the params of layer i.
__device__ inline const ConcatAndCacheMlaParams& layer_of(const ConcatAndCacheMlaParams& p, int64_t) { return p; }
__device__ inline ConcatAndCacheMlaParams layer_of(const ConcatAndCacheMlaGroupedParams& p, int64_t i) {
  return p.layer(i);
}

// Writes entries of latent vector and rotary key.
//
//   threadIdx  x: vectors of an entry   z: tokens
//   blockIdx   x: chunks of tokens      y: layers, from first_layer on
template <class Move, int kUnroll, class Params>
__global__ void __launch_bounds__(kMaxThreads)
    concat_and_cache_mla_kernel(const MULTIKV_GRID_CONSTANT Params p, int64_t first_layer) {
  const auto& layer = layer_of(p, first_layer + blockIdx.y);
  const auto index_of = [&](int64_t token) { return PrefetchedIndex(layer.slots.mapping, token); };
  const ChunkPart part = {
      .first_token = static_cast<int64_t>(blockIdx.x) * (blockDim.z * kUnroll),
      .token = static_cast<int>(threadIdx.z),
      .token_step = static_cast<int>(blockDim.z),
      .vector = threadIdx.x,
      .vector_step = blockDim.x,
  };
  if constexpr (std::is_same_v<Params, ConcatAndCacheMlaGroupedParams>) {
    // The caches' addresses (kv_cache_ptrs) are in the device's memory, so that their alignment is known only here.
    if (reinterpret_cast<uintptr_t>(layer.cache.data) % Move::kCacheBytes != 0) {
      return write_entries<typename Move::Narrow, kUnroll, false>(layer, layer.k_pe.row_bytes, part, index_of);
    }
  }
  write_entries<Move, kUnroll, false>(layer, layer.k_pe.row_bytes, part, index_of);
}

template <class Params>
void launch_layers(const Params& p, const ConcatAndCacheMlaParams& first, int64_t num_layers, AlignmentBits source_bits,
                   const Context& context) {
  const int64_t num_tokens = first.slots.num_tokens;
  const int source_width = source_bits.widest(16), cache_width = cache_alignment_bits(first).widest(16);
  with_moves(first.dtype, first.codec(), source_width, cache_width, [&]<class Move>() {
    BlockShape shape = block_shape(num_vectors<Move>(first.kv_c.row_bytes + first.k_pe.row_bytes), 1, num_tokens);
    shape.row_blocks = num_layers;  // an entry is one row, so that gridDim.y can count layers
    launch_moves<Move>(num_tokens, 1, context, shape, [&]<int kUnroll>() {
      const int64_t chunk = shape.threads.z * kUnroll;
      for_each_grid(ceil_div(num_tokens, chunk), shape, 1, [&](dim3 grid, int64_t first_layer) {
        concat_and_cache_mla_kernel<Move, kUnroll><<<grid, shape.threads, 0, context.stream>>>(p, first_layer);
      });
    });
  });
}

// Writes fp8_ds_mla entries, each by one warp.
template <Float kDtype, bool kWide>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 12)
    ds_mla_kernel(const MULTIKV_GRID_CONSTANT ConcatAndCacheMlaParams p) {
  constexpr int kBytes = kWide ? 16 : 1, kRopeBytes = DsMlaEntry::kRopeSize * static_cast<int>(num_bytes(kDtype));
  const int64_t token = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, first_byte = lane * kBytes;
  if (token >= p.slots.num_tokens) return;
  const PrefetchedIndex slot(p.slots.mapping, token);
  const char* rope = p.k_pe.row(token);
  // Without a rotary key (rope_size 0), the rotary part of the entry becomes zeros.
  const auto read = [&](int byte) { return p.rope_size > 0 ? Pack<kBytes>::read(rope + byte) : Pack<kBytes>{}; };
  Pack<kBytes> value{};
  if (first_byte < kRopeBytes) value = read(first_byte);
  char* entry = nullptr;
  write_ds_mla_latent<kDtype, kWide, false>(p, token, lane, [&] { return entry = entry_at(p.cache, slot.value()); });
  if (entry == nullptr) return;
  if (first_byte < kRopeBytes) value.write(entry + DsMlaEntry::kRopeAt + first_byte);
  for (int byte = first_byte + 32 * kBytes; byte < kRopeBytes; byte += 32 * kBytes)
    read(byte).write(entry + DsMlaEntry::kRopeAt + byte);
}

template <Float kDtype>
void launch_ds_mla(const ConcatAndCacheMlaParams& p, const Context& context) {
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(p.slots.num_tokens, kThreads / 32));
  if ((source_alignment_bits(p) | cache_alignment_bits(p)).widest(16) == 16) {
    ds_mla_kernel<kDtype, true><<<blocks, kThreads, 0, context.stream>>>(p);
  } else {
    ds_mla_kernel<kDtype, false><<<blocks, kThreads, 0, context.stream>>>(p);
  }
}

// Concatenates rows: a row is one head of one token.
//
//   threadIdx  x: vectors of a row of q_out   y: rows
//   blockIdx   x: chunks of rows
template <int kWidth, int kUnroll>
__global__ void __launch_bounds__(256)
    concat_mla_q_kernel(const MULTIKV_GRID_CONSTANT ConcatMlaQParams p, Divisor heads) {
  const int64_t nope_vectors = num_vectors<Copy<kWidth>>(p.ql_nope.head_bytes);
  const int64_t vectors = nope_vectors + num_vectors<Copy<kWidth>>(p.q_pe.head_bytes);
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (blockDim.y * kUnroll) + threadIdx.y;
  for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
    const bool is_nope = vector < nope_vectors;
    const char* source = is_nope ? p.ql_nope.data + vector * kWidth : p.q_pe.data + (vector - nope_vectors) * kWidth;
    const int64_t stride_token = is_nope ? p.ql_nope.stride_token_bytes : p.q_pe.stride_token_bytes;
    const int64_t stride_head = is_nope ? p.ql_nope.stride_head_bytes : p.q_pe.stride_head_bytes;
    Pack<kWidth> values[kUnroll];
    char* to[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t row = first + i * blockDim.y;
      const int64_t token = quotient_of(row, heads), head = row - token * heads.value;
      to[i] = nullptr;
      if (token < p.num_tokens) {
        values[i] = Pack<kWidth>::read(source + token * stride_token + head * stride_head);
        to[i] = p.q_out.head(token, head) + vector * kWidth;
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (to[i] != nullptr) values[i].write(to[i]);
    }
  }
}

template <int kWidth>
void launch_concat_mla_q(const ConcatMlaQParams& p, const Context& context) {
  const int64_t rows = p.num_tokens * p.num_heads;
  const int64_t vectors = p.q_out.head_bytes / kWidth;
  const auto x = static_cast<unsigned>(std::min<int64_t>(vectors, 256));
  const dim3 threads(x, static_cast<unsigned>(std::min<int64_t>(256 / x, rows)));
  const auto run = [&]<int kUnroll>() {
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(rows, threads.y * kUnroll));
    concat_mla_q_kernel<kWidth, kUnroll><<<blocks, threads, 0, context.stream>>>(p, Divisor::of(p.num_heads));
  };
  if (rows / threads.y <= 8 * context.num_multiprocessors) run.template operator()<1>();
  else run.template operator()<4>();
}

}  // namespace

template <>
cudaError_t launch(const ConcatAndCacheMlaParams& p, const Context& context) {
  if (!p.is_ds_mla()) launch_layers(p, p, 1, source_alignment_bits(p), context);
  else if (p.dtype == Float::kBFloat16) launch_ds_mla<Float::kBFloat16>(p, context);
  else launch_ds_mla<Float::kFloat16>(p, context);
  return cudaGetLastError();
}

template <>
cudaError_t launch(const ConcatAndCacheMlaGroupedParams& p, const Context& context) {
  const AlignmentBits source_bits =
      source_alignment_bits(p.first) | p.kv_c_stride_layer_bytes | p.k_pe_stride_layer_bytes;
  launch_layers(p, p.first, p.num_layers, source_bits, context);
  return cudaGetLastError();
}

template <>
cudaError_t launch(const ConcatMlaQParams& p, const Context& context) {
  const AlignmentBits bits = p.ql_nope.alignment_bits() | p.q_pe.alignment_bits() | p.q_out.alignment_bits();
  const int width = bits.widest(16);
  if (width == 16) launch_concat_mla_q<16>(p, context);
  else if (width == 8) launch_concat_mla_q<8>(p, context);
  else if (width == 4) launch_concat_mla_q<4>(p, context);
  else if (width == 2) launch_concat_mla_q<2>(p, context);
  else launch_concat_mla_q<1>(p, context);
  return cudaGetLastError();
}

}  // namespace multikv::gpu
