#include "cuda/cache/gather_rows.cuh"
#include "cuda/cache/slots.cuh"
#include "cuda/core/quantised_tile.cuh"
#include "params/indexer_params.h"

namespace multikv::gpu {
namespace {

// The TileScaling of the indexer's cache.
struct IndexerScaling {
  Element element;
  ScaleType type;

  __device__ bool is_power_of_two() const { return type != ScaleType::kFloat32; }
  __device__ float scale_of(float amax) const { return indexer_tile_scale(amax, element, type); }
  __device__ uint32_t stored(float scale) const { return stored_tile_scale(scale, type); }
};

// Every group of 2^lane_bits neighbouring lanes quantises one tile.
template <Float kDtype, int kElements>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 12)
    indexer_k_quant_and_cache_kernel(const MULTIKV_GRID_CONSTANT IndexerKQuantAndCacheParams p, Divisor tiles_per_token,
                                     int lane_bits) {
  const int lane = threadIdx.x & ((1 << lane_bits) - 1);
  const int64_t group = (blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x) >> lane_bits;
  const auto token = static_cast<int64_t>(quotient_of(group, tiles_per_token));
  const int64_t tile = group - token * tiles_per_token.signed_value(), begin = tile * p.quant_block_size;
  const char* source = nullptr;
  int64_t index = -1;
  if (token < p.slots.num_tokens) {
    index = p.slots.mapping.at(token);
    source = p.k.row(token) + begin * num_bytes(kDtype);
  }
  const auto pointers_of = [&]() -> TilePointers {
    if (!is_slot(p.blocks(), index)) return {nullptr, nullptr};
    const BlockOffset at = split(p.blocks(), index);
    return {p.cache.codes(at) + begin, p.cache.scales(at) + tile * 4};
  };
  quantise_tile<kDtype, kElements, true>(source, p.quant_block_size, GroupLane{lane, 1 << lane_bits},
                                         IndexerScaling{p.codec().element, p.codec().scale_type}, pointers_of);
}

template <Float kDtype>
void launch_quantise(const IndexerKQuantAndCacheParams& p, const Context& context) {
  constexpr int kWide = 8;  // elements
  const AlignmentBits source = p.k.alignment_bits() | p.quant_block_size * num_bytes(kDtype);
  const AlignmentBits cache = p.cache.code_alignment_bits() | p.quant_block_size;
  const bool is_wide = source.widest(16) == 16 && cache.widest(kWide) == kWide;
  const int64_t vectors = p.quant_block_size / (is_wide ? kWide : 1);
  // A group has enough lanes to hold a tile in registers (kTileVectors vectors a lane), but at most a warp.
  int lane_bits = 0;
  while ((kTileVectors << lane_bits) < vectors && lane_bits < 5) ++lane_bits;
  const Divisor tiles_per_token = Divisor::of(p.head_size / p.quant_block_size);
  const int64_t threads = p.slots.num_tokens * tiles_per_token.signed_value() << lane_bits;
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(threads, kThreads));
  if (is_wide) {
    indexer_k_quant_and_cache_kernel<kDtype, kWide>
        <<<blocks, kThreads, 0, context.stream>>>(p, tiles_per_token, lane_bits);
  } else {
    indexer_k_quant_and_cache_kernel<kDtype, 1><<<blocks, kThreads, 0, context.stream>>>(p, tiles_per_token, lane_bits);
  }
}

// An entry of the indexer's cache, as a gather moves it: the codes are the vectors, the scales are the rest.
template <int kWidth>
struct IndexerEntry : IndexedVectors {
  static constexpr int kVectorBytes = kWidth, kBlocks = 8;
  struct Pointer {
    const char *codes, *scales;
    __device__ explicit operator bool() const { return codes != nullptr; }
  };
  using Value = Pack<kWidth>;
  using Rest = uint32_t;  // the first scale; write_rest() copies the others
  CpGatherIndexerKQuantCacheParams p;

  __host__ __device__ const Sequences& sequences() const { return p.sequences; }
  __host__ __device__ int64_t vectors() const { return p.cache.code_bytes / kWidth; }
  __device__ Pointer find(BlockOffset at) const { return {p.cache.codes(at), p.cache.scales(at)}; }
  __device__ Value read(Pointer from, int64_t vector) const {
    return Value::template read<true>(from.codes + vector * kWidth);
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    value.template write<true>(p.dst_k.row(token) + vector * kWidth);
  }
  __device__ Rest read_rest(Pointer from) const { return load_word(from.scales); }
  __device__ void write_rest(int64_t token, Pointer from, Rest first) const {
    char* to = p.dst_scale.row(token);
    store_word(to, first);
    for (int64_t byte = 4; byte < p.cache.scale_bytes; byte += 4) {
      store_word(to + byte, load_word(from.scales + byte));
    }
  }
};

}  // namespace

template <>
cudaError_t launch(const IndexerKQuantAndCacheParams& p, const Context& context) {
  with_dtype(p.dtype, [&]<Float kDtype>() { launch_quantise<kDtype>(p, context); });
  return cudaGetLastError();
}

template <>
cudaError_t launch(const CpGatherIndexerKQuantCacheParams& p, const Context& context) {
  const bool is_wide = (p.cache.code_alignment_bits() | p.dst_k.alignment_bits()).widest(16) == 16;
  return is_wide ? launch_gather(IndexerEntry<16>{{}, p}, context) : launch_gather(IndexerEntry<1>{{}, p}, context);
}

}  // namespace multikv::gpu
