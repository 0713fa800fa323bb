#include "cuda/cache/mla_entry.cuh"

namespace multikv::gpu {
namespace {

__device__ inline const ConcatAndCacheMlaParams& layer_of(const ConcatAndCacheMlaParams& p, int64_t) { return p; }
__device__ inline ConcatAndCacheMlaParams layer_of(const ConcatAndCacheMlaGroupedParams& p, int64_t i) {
  return p.layer(i);
}

// Threads: x over the vectors of an entry, z and blockIdx.x over tokens. blockIdx.y over layers.
template <class Move, int kUnroll, class Params>
__global__ void __launch_bounds__(kMaxThreads)
    concat_and_cache_mla_kernel(const MULTIKV_GRID_CONSTANT Params p, int64_t first_layer) {
  const auto& layer = layer_of(p, first_layer + blockIdx.y);
  const auto index_of = [&](int64_t token) { return PendingIndex(layer.slots.mapping, token); };
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (blockDim.z * kUnroll);
  const auto write = [&]<class Width>() {
    write_entries<Width, kUnroll, false>(layer, index_of, layer.rope_size, first, threadIdx.z, blockDim.z, threadIdx.x,
                                         blockDim.x);
  };
  if constexpr (std::is_same_v<Params, ConcatAndCacheMlaGroupedParams>) {
    // Only here are the addresses of the caches known.
    if (reinterpret_cast<uintptr_t>(layer.kv_cache) % Move::kCacheBytes != 0) {
      return write.template operator()<typename Move::Narrow>();
    }
  }
  write.template operator()<Move>();
}

template <class Params>
void launch_layers(const Params& p, const ConcatAndCacheMlaParams& first, int64_t num_layers, int source_width,
                   int cache_width, const Context& context) {
  const int64_t num_tokens = first.slots.num_tokens;
  with_moves(first.dtype, first.format, source_width, cache_width, [&]<class Move>() {
    const int64_t vectors = (first.latent_size + first.rope_size) * num_bytes(first.dtype) / Move::kSourceBytes;
    BlockShape shape = block_shape(vectors, 1, num_tokens);
    shape.row_blocks = num_layers;
    launch_moves<Move>(num_tokens, 1, context, shape, [&]<int kUnroll>() {
      const int64_t tile = shape.threads.z * kUnroll;
      for_each_grid((num_tokens + tile - 1) / tile, shape, 1, [&](dim3 grid, int64_t first_layer) {
        concat_and_cache_mla_kernel<Move, kUnroll><<<grid, shape.threads, 0, context.stream>>>(p, first_layer);
      });
    });
  });
}

// A group of 32 lanes writes an entry.
template <Float kDtype, bool kWide>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 12)
    ds_mla_kernel(const MULTIKV_GRID_CONSTANT ConcatAndCacheMlaParams p) {
  constexpr int kBytes = kWide ? 16 : 1, kRopeBytes = DsMlaEntry::kRopeSize * static_cast<int>(num_bytes(kDtype));
  const int64_t token = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32, first = lane * kBytes;
  if (token >= p.slots.num_tokens) return;
  const PendingIndex slot(p.slots.mapping, token);
  const char* rope = static_cast<const char*>(p.k_pe) + token * p.k_pe_stride_token * num_bytes(kDtype);
  const auto read = [&](int at) { return p.rope_size > 0 ? Pack<kBytes>::read(rope + at) : Pack<kBytes>{}; };
  Pack<kBytes> value{};
  if (first < kRopeBytes) value = read(first);
  char* entry = nullptr;
  write_ds_mla_latent<kDtype, kWide, false>(p, token, lane, [&] { return entry = entry_at(p, slot.value()); });
  if (entry == nullptr) return;
  if (first < kRopeBytes) value.write(entry + DsMlaEntry::kRopeAt + first);
  for (int at = first + 32 * kBytes; at < kRopeBytes; at += 32 * kBytes)
    read(at).write(entry + DsMlaEntry::kRopeAt + at);
}

template <Float kDtype>
void launch_ds_mla(const ConcatAndCacheMlaParams& p, const Context& context) {
  const auto blocks = static_cast<unsigned>((p.slots.num_tokens - 1) / (kThreads / 32) + 1);
  if (std::min(source_alignment(p), cache_alignment(p)) == 16) {
    ds_mla_kernel<kDtype, true><<<blocks, kThreads, 0, context.stream>>>(p);
  } else {
    ds_mla_kernel<kDtype, false><<<blocks, kThreads, 0, context.stream>>>(p);
  }
}

// Rows are the heads of all tokens. Threads: x over the vectors of a row of q_out, y and blockIdx.x over rows.
template <int kWidth, int kUnroll>
__global__ void __launch_bounds__(256)
    concat_mla_q_kernel(const MULTIKV_GRID_CONSTANT ConcatMlaQParams p, Divisor heads) {
  const int64_t nope_vectors = p.nope_bytes / kWidth, vectors = nope_vectors + p.rope_bytes / kWidth;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * (blockDim.y * kUnroll) + threadIdx.y;
  for (int64_t vector = threadIdx.x; vector < vectors; vector += blockDim.x) {
    const bool is_nope = vector < nope_vectors;
    const char* source = is_nope ? static_cast<const char*>(p.ql_nope) + vector * kWidth
                                 : static_cast<const char*>(p.q_pe) + (vector - nope_vectors) * kWidth;
    const int64_t stride_token = is_nope ? p.ql_nope_stride_token_bytes : p.q_pe_stride_token_bytes;
    const int64_t stride_head = is_nope ? p.ql_nope_stride_head_bytes : p.q_pe_stride_head_bytes;
    Pack<kWidth> values[kUnroll];
    char* to[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t row = first + i * blockDim.y;
      const int64_t token = quotient_of(row, heads), head = row - token * heads.value;
      to[i] = nullptr;
      if (token < p.num_tokens) {
        values[i] = Pack<kWidth>::read(source + token * stride_token + head * stride_head);
        to[i] = static_cast<char*>(p.q_out) + token * p.q_out_stride_token_bytes + head * p.q_out_stride_head_bytes +
                vector * kWidth;
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
  const int64_t vectors = (p.nope_bytes + p.rope_bytes) / kWidth;
  const auto x = static_cast<unsigned>(std::min<int64_t>(vectors, 256));
  const dim3 threads(x, static_cast<unsigned>(std::min<int64_t>(256 / x, rows)));
  const auto run = [&]<int kUnroll>() {
    const int64_t tile = threads.y * kUnroll;
    const auto blocks = static_cast<unsigned>((rows + tile - 1) / tile);
    concat_mla_q_kernel<kWidth, kUnroll><<<blocks, threads, 0, context.stream>>>(p, Divisor::of(p.num_heads));
  };
  if (rows / threads.y <= 8 * context.num_multiprocessors) run.template operator()<1>();
  else run.template operator()<4>();
}

}  // namespace

void launch(const ConcatAndCacheMlaParams& p, const Context& context) {
  if (!p.is_ds_mla) return launch_layers(p, p, 1, source_alignment(p), cache_alignment(p), context);
  if (p.dtype == Float::kBFloat16) launch_ds_mla<Float::kBFloat16>(p, context);
  else launch_ds_mla<Float::kFloat16>(p, context);
}

void launch(const ConcatAndCacheMlaGroupedParams& p, const Context& context) {
  const int64_t bytes = num_bytes(p.first.dtype);
  const int source_width =
      common_alignment(16, {source_alignment(p.first), p.kv_c_stride_layer * bytes, p.k_pe_stride_layer * bytes});
  launch_layers(p, p.first, p.num_layers, source_width, cache_alignment(p.first), context);
}

void launch(const ConcatMlaQParams& p, const Context& context) {
  switch (common_alignment(16, {address(p.ql_nope), address(p.q_pe), address(p.q_out), p.nope_bytes, p.rope_bytes,
                                p.ql_nope_stride_token_bytes, p.ql_nope_stride_head_bytes, p.q_pe_stride_token_bytes,
                                p.q_pe_stride_head_bytes, p.q_out_stride_token_bytes, p.q_out_stride_head_bytes})) {
    case 16: return launch_concat_mla_q<16>(p, context);
    case 8: return launch_concat_mla_q<8>(p, context);
    case 4: return launch_concat_mla_q<4>(p, context);
    case 2: return launch_concat_mla_q<2>(p, context);
    default: return launch_concat_mla_q<1>(p, context);
  }
}

}  // namespace multikv::gpu
