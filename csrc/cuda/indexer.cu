#include "gather.cuh"
#include "slots.cuh"
#include "tile.cuh"

namespace multikv::gpu {
namespace {

// Groups of `lanes` lanes take kTiles tiles each.
template <Float kDtype, int kElements, int kTiles>
__global__ void __launch_bounds__(256)
    indexer_k_quant_and_cache_kernel(const MULTIKV_GRID_CONSTANT IndexerKQuantAndCacheParams p, Divisor tiles_per_token,
                                     int lane_bits) {
  const int lane = threadIdx.x & ((1 << lane_bits) - 1);
  const int64_t groups = blockDim.x >> lane_bits;
  const int64_t first = blockIdx.x * groups * kTiles + (threadIdx.x >> lane_bits);
  const char* sources[kTiles];
  int64_t slots[kTiles], begins[kTiles];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const int64_t tile = first + i * groups;
    const auto token = static_cast<int64_t>(tiles_per_token.divide(tile, high_product));
    begins[i] = (tile - token * static_cast<int64_t>(tiles_per_token.value)) * p.quant_block_size;
    sources[i] = nullptr;
    slots[i] = -1;
    if (token >= p.slots.num_tokens) continue;
    slots[i] = p.slots.mapping.at(token);
    sources[i] = static_cast<const char*>(p.k) + (token * p.k_stride_token + begins[i]) * num_bytes(kDtype);
  }
  const auto place_of = [&](int i) -> TilePlace {
    if (!is_slot(p.slots, slots[i])) return {nullptr, nullptr};
    const auto [block, offset] = slot_of(p.slots, slots[i]);
    const int64_t element = offset * p.head_size + begins[i];
    char* codes = static_cast<char*>(p.kv_cache) + block * p.kv_cache_stride_block_bytes;
    return {codes + element, codes + p.slots.block_size.value * p.head_size + element / p.quant_block_size * 4};
  };
  quantise_tiles<kDtype, kElements>(
      sources, place_of, p.quant_block_size, lane, 1 << lane_bits, p.format, p.scale_format != ScaleFormat::kFloat32,
      [&](float amax) { return indexer_tile_scale(amax, p.format, p.scale_format); },
      [&](float scale) { return stored_tile_scale(scale, p.scale_format); });
}

template <Float kDtype>
void launch_quantise(const IndexerKQuantAndCacheParams& p, const Context& context) {
  constexpr int64_t kBytes = num_bytes(kDtype), kThreads = 256, kWide = 16;
  const bool is_wide =
      common_alignment(16, {address(p.k), p.k_stride_token * kBytes, p.quant_block_size * kBytes}) == 16 &&
      common_alignment(kWide, {address(p.kv_cache), p.kv_cache_stride_block_bytes, p.quant_block_size}) == kWide;
  const int64_t vectors = p.quant_block_size / (is_wide ? kWide : 1);
  int lane_bits = 0;
  while ((1 << lane_bits) < vectors && lane_bits < 5) ++lane_bits;
  const int64_t tiles_per_token = p.head_size / p.quant_block_size;
  const int64_t threads = p.slots.num_tokens * tiles_per_token << lane_bits;
  const auto run = [&]<int kElements, int kTiles>() {
    const auto blocks = static_cast<unsigned>((threads - 1) / (kThreads * kTiles) + 1);
    indexer_k_quant_and_cache_kernel<kDtype, kElements, kTiles>
        <<<blocks, kThreads, 0, context.stream>>>(p, Divisor::of(tiles_per_token), lane_bits);
  };
  if (!is_wide) run.template operator()<1, 1>();
  else if (threads <= kThreads * 4 * context.num_multiprocessors) run.template operator()<kWide, 1>();
  else run.template operator()<kWide, 2>();
}

// The codes of a row, kWidth at a time, then its scales, four bytes or one at a time.
template <int kWidth>
struct IndexerEntry {
  static constexpr int kScaleWidth = kWidth < 4 ? kWidth : 4;
  using Value = Pack<kWidth>;
  CpGatherIndexerKQuantCacheParams p;

  __host__ __device__ const Sequences& sequences() const { return p.sequences; }
  __host__ __device__ int64_t k_vectors() const { return p.k_bytes / kWidth; }
  __host__ __device__ int64_t vectors() const { return k_vectors() + p.scale_bytes / kScaleWidth; }
  // Names the entry by its slot.
  __device__ int64_t place(int64_t id, int64_t offset) const {
    return id * static_cast<int64_t>(p.sequences.block_size.value) + offset;
  }
  __device__ Value read(int64_t place, int64_t vector) const {
    const int64_t block = p.sequences.block_size.divide(place, high_product);
    const int64_t offset = place - block * static_cast<int64_t>(p.sequences.block_size.value);
    const char* codes = static_cast<const char*>(p.kv_cache) + block * p.kv_cache_stride_block_bytes;
    if (vector < k_vectors()) return Value::read(codes + offset * p.k_bytes + vector * kWidth);
    const char* scales = codes + p.sequences.block_size.value * p.k_bytes + offset * p.scale_bytes;
    Value value{};
    value.words[0] = Pack<kScaleWidth>::read(scales + (vector - k_vectors()) * kScaleWidth).words[0];
    return value;
  }
  __device__ void write(int64_t token, int64_t vector, const Value& value) const {
    if (vector < k_vectors()) {
      return value.write(static_cast<char*>(p.dst_k) + token * p.dst_k_stride_token_bytes + vector * kWidth);
    }
    Pack<kScaleWidth> scale;
    scale.words[0] = value.words[0];
    scale.write(static_cast<char*>(p.dst_scale) + token * p.dst_scale_stride_token_bytes +
                (vector - k_vectors()) * kScaleWidth);
  }
};

}  // namespace

void launch(const IndexerKQuantAndCacheParams& p, const Context& context) {
  with_dtype(p.dtype, [&]<Float kDtype>() { launch_quantise<kDtype>(p, context); });
}

void launch(const CpGatherIndexerKQuantCacheParams& p, const Context& context) {
  const bool is_wide = common_alignment(16, {address(p.kv_cache), p.kv_cache_stride_block_bytes, p.k_bytes,
                                             address(p.dst_k), p.dst_k_stride_token_bytes}) == 16 &&
                       common_alignment(4, {address(p.dst_scale), p.dst_scale_stride_token_bytes}) == 4;
  if (is_wide) launch_gather(IndexerEntry<16>{p}, context);
  else launch_gather(IndexerEntry<1>{p}, context);
}

}  // namespace multikv::gpu
