#include "cuda/cache/gather_rows.cuh"
#include "cuda/cache/slots.cuh"
#include "cuda/core/quantised_tile.cuh"

namespace multikv::gpu {
namespace {

// Groups of 2^lane_bits lanes take a tile each.
template <Float kDtype, int kElements>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 12)
    indexer_k_quant_and_cache_kernel(const MULTIKV_GRID_CONSTANT IndexerKQuantAndCacheParams p, Divisor tiles_per_token,
                                     int lane_bits) {
  const int lane = threadIdx.x & ((1 << lane_bits) - 1);
  const int64_t index = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) >> lane_bits;
  const auto token = static_cast<int64_t>(quotient_of(index, tiles_per_token));
  const int64_t tile = index - token * static_cast<int64_t>(tiles_per_token.value), begin = tile * p.quant_block_size;
  const char* source = nullptr;
  int64_t slot = -1;
  if (token < p.slots.num_tokens) {
    slot = p.slots.mapping.at(token);
    source = static_cast<const char*>(p.k) + (token * p.k_stride_token + begin) * num_bytes(kDtype);
  }
  const auto place = [&]() -> TilePlace {
    if (!is_slot(p.slots, slot)) return {nullptr, nullptr};
    const auto [block, offset] = slot_of(p.slots, slot);
    char* codes = static_cast<char*>(p.kv_cache) + block * p.kv_cache_stride_block_bytes;
    char* scales = codes + p.slots.block_size.value * p.head_size;
    return {codes + offset * p.head_size + begin, scales + (offset * tiles_per_token.value + tile) * 4};
  };
  quantise_tile<kDtype, kElements, true>(
      source, place, p.quant_block_size, lane, 1 << lane_bits, p.format, p.scale_format != ScaleFormat::kFloat32,
      [&](float amax) { return indexer_tile_scale(amax, p.format, p.scale_format); },
      [&](float scale) { return stored_tile_scale(scale, p.scale_format); });
}

template <Float kDtype>
void launch_quantise(const IndexerKQuantAndCacheParams& p, const Context& context) {
  constexpr int64_t kBytes = num_bytes(kDtype), kWide = 8;
  const bool is_wide =
      common_alignment(16, {address(p.k), p.k_stride_token * kBytes, p.quant_block_size * kBytes}) == 16 &&
      common_alignment(kWide, {address(p.kv_cache), p.kv_cache_stride_block_bytes, p.quant_block_size}) == kWide;
  const int64_t vectors = p.quant_block_size / (is_wide ? kWide : 1);
  int lane_bits = 0;
  while ((kTileVectors << lane_bits) < vectors && lane_bits < 5) ++lane_bits;
  const Divisor tiles_per_token = Divisor::of(p.head_size / p.quant_block_size);
  const int64_t threads = p.slots.num_tokens * static_cast<int64_t>(tiles_per_token.value) << lane_bits;
  const auto blocks = static_cast<unsigned>((threads - 1) / kThreads + 1);
  if (is_wide) {
    indexer_k_quant_and_cache_kernel<kDtype, kWide>
        <<<blocks, kThreads, 0, context.stream>>>(p, tiles_per_token, lane_bits);
  } else {
    indexer_k_quant_and_cache_kernel<kDtype, 1><<<blocks, kThreads, 0, context.stream>>>(p, tiles_per_token, lane_bits);
  }
}

// The codes of a row are vectors, its scales the rest.
template <int kWidth>
struct IndexerEntry {
  static constexpr int kVectorBytes = kWidth, kBlocks = 8;
  struct Place {
    const char *codes, *scales;
    __device__ explicit operator bool() const { return codes != nullptr; }
  };
  using Value = Pack<kWidth>;
  using Rest = uint32_t;  // the first scale
  CpGatherIndexerKQuantCacheParams p;

  __host__ __device__ const Sequences& sequences() const { return p.sequences; }
  __host__ __device__ int64_t vectors() const { return p.k_bytes / kWidth; }
  __device__ Place place(Found entry) const {
    const char* codes = static_cast<const char*>(p.kv_cache) + entry.block * p.kv_cache_stride_block_bytes;
    return {codes + entry.offset * p.k_bytes,
            codes + p.sequences.block_size.value * p.k_bytes + entry.offset * p.scale_bytes};
  }
  __device__ Value read(Place place, int64_t vector) const {
    return Value::template read<true>(place.codes + vector * kWidth);
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.template write<true>(static_cast<char*>(p.dst_k) + token * p.dst_k_stride_token_bytes + vector * kWidth);
  }
  __device__ Rest read_rest(Place place) const { return load_word(place.scales); }
  __device__ void write_rest(int64_t token, Place place, Rest first) const {
    char* to = static_cast<char*>(p.dst_scale) + token * p.dst_scale_stride_token_bytes;
    store_word(to, first);
    for (int64_t at = 4; at < p.scale_bytes; at += 4) store_word(to + at, load_word(place.scales + at));
  }
};

}  // namespace

void launch(const IndexerKQuantAndCacheParams& p, const Context& context) {
  with_dtype(p.dtype, [&]<Float kDtype>() { launch_quantise<kDtype>(p, context); });
}

void launch(const CpGatherIndexerKQuantCacheParams& p, const Context& context) {
  const bool is_wide = common_alignment(16, {address(p.kv_cache), p.kv_cache_stride_block_bytes, p.k_bytes,
                                             address(p.dst_k), p.dst_k_stride_token_bytes}) == 16;
  if (is_wide) launch_gather(IndexerEntry<16>{p}, context);
  else launch_gather(IndexerEntry<1>{p}, context);
}

}  // namespace multikv::gpu
