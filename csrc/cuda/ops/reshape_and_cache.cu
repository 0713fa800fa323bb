#include "cuda/cache/write_tokens.cuh"

namespace multikv::gpu {
namespace {

// Threads: x over the vectors of a head, y and blockIdx.y over heads, z and blockIdx.x over tokens. blockIdx.z: key or
// value. Here strides count bytes, and head_size vectors.
template <class Move, int kUnroll>
__global__ void __launch_bounds__(kMaxThreads)
    reshape_and_cache_flash_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheFlashParams p, int64_t first_head) {
  const CacheWrite& w = blockIdx.z == 0 ? p.key : p.value;
  const int64_t head = first_head + blockIdx.y * blockDim.y + threadIdx.y;
  const TilePart part = {
      .first = static_cast<int64_t>(blockIdx.x) * (blockDim.z * kUnroll),
      .row = static_cast<int>(threadIdx.z),
      .rows = static_cast<int>(blockDim.z),
      .vector = threadIdx.x,
      .vector_step = blockDim.x,
      .num_vectors = head < p.num_heads ? w.head_size : 0,
  };
  const auto lane_of = [&](int64_t vector) -> Lane {
    return {static_cast<const char*>(w.source) + head * w.source_stride_head + vector * Move::kSourceBytes,
            static_cast<char*>(w.cache) + head * w.cache_stride_head + vector * Move::kCacheBytes,
            w.source_stride_token};
  };
  const SlotStrides strides = {w.cache_stride_block, w.cache_stride_slot};
  const float* scale = w.scale + (head < p.num_heads ? head * w.scale_stride_head : 0);
  write_tokens<Move, kUnroll>(
      p.slots, [&](int64_t token) { return PendingIndex(p.slots.mapping, token); }, part, strides, lane_of, scale,
      p.format);
}

// As the kernel wants it.
CacheWrite in_bytes(CacheWrite w, int64_t source_bytes, int64_t cache_bytes, int64_t vector_bytes) {
  for (int64_t* stride : {&w.source_stride_token, &w.source_stride_head}) *stride *= source_bytes;
  for (int64_t* stride : {&w.cache_stride_block, &w.cache_stride_slot, &w.cache_stride_head}) *stride *= cache_bytes;
  w.head_size = w.head_size * source_bytes / vector_bytes;
  return w;
}

// The widest access that suits one side (source or cache) of a write.
int source_alignment(const CacheWrite& w, int64_t element_bytes) {
  return common_alignment(16, {address(w.source), w.head_size * element_bytes, w.source_stride_token * element_bytes,
                               w.source_stride_head * element_bytes});
}
int cache_alignment(const CacheWrite& w, int64_t element_bytes) {
  return common_alignment(16, {address(w.cache), w.head_size * element_bytes, w.cache_stride_block * element_bytes,
                               w.cache_stride_slot * element_bytes, w.cache_stride_head * element_bytes});
}

// The packed layout: a thread block takes tokens of one head.
constexpr int kDims = 128;  // of a tile of values
constexpr int kRun = 16;    // tokens that are written as one, if they are neighbours in the cache

// Keys: each vector goes as a whole into one of the cache. Threads: four vectors first, for memory moves 32 bytes at
// least; then tokens, for their vectors are neighbours in the cache; then further vectors.
template <class Move, int kTokens>
__device__ inline void write_packed_keys(const ReshapeAndCacheParams& p, int64_t head, int64_t first) {
  constexpr int kNear = 4, kVectorThreads = 16, kStep = kThreads / kVectorThreads, kUnroll = kTokens / kStep;
  const PackedWrite& w = p.key;
  const int64_t source_bytes = num_bytes(p.dtype), cache_bytes = num_bytes(p.format, p.dtype);
  const TilePart part = {
      .first = first,
      .row = static_cast<int>(threadIdx.x / kNear % kStep),
      .rows = kStep,
      .vector = threadIdx.x / (kNear * kStep) * kNear + threadIdx.x % kNear,
      .vector_step = kVectorThreads,
      .num_vectors = p.head_size * source_bytes / Move::kSourceBytes,
  };
  const auto lane_of = [&](int64_t vector) -> Lane {
    const int64_t element = vector * (Move::kCacheBytes / cache_bytes);
    const auto chunk = static_cast<int64_t>(quotient_of(element, w.vector_size));
    return {
        static_cast<const char*>(w.source) + head * w.source_stride_head * source_bytes + vector * Move::kSourceBytes,
        static_cast<char*>(w.cache) + (head * w.cache_stride_head + chunk * w.cache_stride_vector + element -
                                       chunk * static_cast<int64_t>(w.vector_size.value)) *
                                          cache_bytes,
        w.source_stride_token * source_bytes};
  };
  write_tokens<Move, kUnroll, true>(
      p.slots, [&](int64_t token) { return PendingIndex(p.slots.mapping, token); }, part,
      {w.cache_stride_block * cache_bytes, w.cache_stride_row * cache_bytes}, lane_of,
      w.scale + head * w.scale_stride_head, p.format);
}

// Elements of kPer = 4 / sizeof(Element) rows change places with columns: word `column` of the result holds element
// `column` of all rows.
template <class Element, int kPer>
__device__ inline uint32_t column_of(const uint32_t* const (&rows)[kPer], int column) {
  if constexpr (kPer == 1) {
    return rows[0][column];
  } else if constexpr (kPer == 2) {
    return __byte_perm(rows[0][column / 2], rows[1][column / 2], column % 2 == 0 ? 0x5410 : 0x7632);
  } else {
    const int word = column / 4, selector = column % 4 | (column % 4 + 4) << 4;
    return __byte_perm(__byte_perm(rows[0][word], rows[1][word], selector),
                       __byte_perm(rows[2][word], rows[3][word], selector), 0x5410);
  }
}

// Values change places with tokens, in shared memory: a row of it is a dimension, its words hold kPer tokens each.
template <class Element, int kTokens>
struct ValueTile {
  static constexpr int kPer = 4 / sizeof(Element), kWords = kTokens / kPer;
  static constexpr int kPlacers = kTokens < 32 ? 32 : kTokens;  // whole groups of lanes
  uint32_t words[kDims][kWords + 1];
  int64_t places[kPlacers];  // in elements; negative: nowhere
  bool is_run[kPlacers / kRun];

  // Words of a row are rotated so that all the lanes that write a column, and all that read one, have banks of their
  // own.
  __device__ uint32_t& word(int dim, int word) {
    return words[dim][static_cast<unsigned>(word + dim / 32 * 2) % kWords];
  }
  __device__ Element element(int dim, int token) {
    return static_cast<Element>(word(dim, token / kPer) >> (token % kPer * 8 * sizeof(Element) % 32));
  }
};

// Where the tokens of a tile go, by a thread for each of kPlacers.
template <class Element, int kTokens>
__device__ inline void place_values(const ReshapeAndCacheParams& p, ValueTile<Element, kTokens>& tile, int64_t head,
                                    int64_t index, int token) {
  const PackedWrite& w = p.value;
  int64_t place = -1;
  if (is_slot(p.slots, index)) {
    const auto [block, offset] = slot_of(p.slots, index);
    const auto group = static_cast<int64_t>(quotient_of(offset, w.vector_size));
    place = block * w.cache_stride_block + head * w.cache_stride_head + group * w.cache_stride_vector +
            (offset - group * static_cast<int64_t>(w.vector_size.value));
  }
  tile.places[token] = place;
  const int lane = token % 32, begin = lane / kRun * kRun;
  const int64_t first = shuffle(place, begin);
  const auto address = reinterpret_cast<uintptr_t>(w.cache) + first * sizeof(Element);
  const bool is_wide = (address | w.cache_stride_row * sizeof(Element)) % 16 == 0;
  const uint32_t neighbours = ballot(place >= 0 && place == first + (lane - begin)) >> begin;
  if (lane == begin) tile.is_run[token / kRun] = is_wide && (neighbours & 0xffff) == 0xffff;
}

template <class Move, class Element, int kTokens>
__device__ inline void write_packed_values(const ReshapeAndCacheParams& p, int64_t head, int64_t first) {
  using Tile = ValueTile<Element, kTokens>;
  constexpr int kPer = Tile::kPer, kWords = Tile::kWords, kPlacers = Tile::kPlacers;
  constexpr int kVector = Move::kCacheBytes / static_cast<int>(sizeof(Element));
  constexpr int kUnroll = kVector == 1 || kPer == 4 || kTokens < 64 ? 1 : 4 / kPer;
  __shared__ Tile tile;
  const PackedWrite& w = p.value;
  const int num_tokens = static_cast<int>(p.slots.num_tokens - first < kTokens ? p.slots.num_tokens - first : kTokens);
  const int64_t source_bytes = num_bytes(p.dtype), stride = w.source_stride_token * source_bytes;
  const char* source = static_cast<const char*>(w.source) + head * w.source_stride_head * source_bytes + first * stride;
  const auto scale = Move::scale(w.scale + head * w.scale_stride_head);
  const int thread = threadIdx.x, lane = thread % 32;
  const int64_t index = thread < num_tokens ? p.slots.mapping.at(first + thread) : -1;

  for (int64_t begin = 0; begin < p.head_size; begin += kDims) {
    const int dims = static_cast<int>(p.head_size - begin < kDims ? p.head_size - begin : kDims);
    const int vectors = dims / kVector, count = vectors * kWords;
    const SmallDivisor vectors_of_word = SmallDivisor::of(vectors);
    for (int round = thread; round < count; round += kUnroll * kThreads) {
      typename Move::Source values[kUnroll][kPer];
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int task = round + i * kThreads, word = vectors_of_word.divide(task), vector = task - word * vectors;
        const char* from = source + word * kPer * stride + begin * source_bytes + vector * Move::kSourceBytes;
#pragma unroll
        for (int k = 0; k < kPer; ++k) {
          if (word * kPer + k < num_tokens) values[i][k] = Move::Source::template read<true>(from + k * stride);
        }
      }
      const Move move(scale, p.format);
#pragma unroll
      for (int i = 0; i < kUnroll; ++i) {
        const int task = round + i * kThreads, word = vectors_of_word.divide(task), vector = task - word * vectors;
        if (task >= count) continue;
        Pack<Move::kCacheBytes> rows[kPer];
        const uint32_t* row_words[kPer];
#pragma unroll
        for (int k = 0; k < kPer; ++k) row_words[k] = (rows[k] = move(values[i][k])).words;
#pragma unroll
        for (int d = 0; d < kVector; ++d)
          tile.word(vector * kVector + d, word) = column_of<Element, kPer>(row_words, d);
      }
    }
    if (begin == 0 && thread < kPlacers) place_values(p, tile, head, index, thread);
    __syncthreads();
    Element* cache = static_cast<Element*>(w.cache) + begin * w.cache_stride_row;
    constexpr int kRuns = kTokens / kRun;
    if (const int run = thread / 32 % kRuns; tile.is_run[run]) {  // two groups of lanes for each
      // Pieces of 16 bytes, those of a dimension by neighbouring lanes.
      constexpr int kPieces = kRun * sizeof(Element) / 16, kStep = kThreads / kRuns / kPieces;
      const int piece = lane % kPieces;
      Element* to = cache + tile.places[run * kRun] + piece * (16 / sizeof(Element));
      for (int dim = (thread / (32 * kRuns) * 32 + lane) / kPieces; dim < dims; dim += kStep) {
        Pack<16> out;
#pragma unroll
        for (int i = 0; i < 4; ++i) out.words[i] = tile.word(dim, run * (kRun / kPer) + piece * 4 + i);
        out.template write<true>(reinterpret_cast<char*>(to + dim * w.cache_stride_row));
      }
    }
    for (int begin_run = 0; begin_run < num_tokens; begin_run += kRun) {  // element by element, by all threads
      const int token = begin_run + thread % kRun, first_dim = thread / kRun;
      const int64_t place = tile.places[token];
      if (tile.is_run[begin_run / kRun] || place < 0) continue;
      Element* to = cache + place + first_dim * w.cache_stride_row;
#pragma unroll 4
      for (int dim = first_dim; dim < dims; dim += kThreads / kRun, to += kThreads / kRun * w.cache_stride_row) {
        *to = tile.element(dim, token);
      }
    }
    __syncthreads();
  }
}

// blockIdx.x over heads, y over tokens: the blocks that read neighbouring memory run together. x, or z, also over keys
// and values.
template <class Move, class Element, int kTokens>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 7)
    reshape_and_cache_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheParams p, int64_t first_tile) {
  const int64_t first = (first_tile + blockIdx.y) * kTokens;
  const int64_t head = blockIdx.x + blockIdx.z * p.num_heads;
  if (head < p.num_heads) write_packed_keys<Move, kTokens>(p, head, first);
  else write_packed_values<Move, Element, kTokens>(p, head - p.num_heads, first);
}

// Few tokens, element by element: the shortest way from load to store. Threads: over dimensions. blockIdx.x: over
// tokens, y over heads, z: key or value.
template <class Move>
__global__ void __launch_bounds__(kThreads)
    reshape_and_cache_elements_kernel(const MULTIKV_GRID_CONSTANT ReshapeAndCacheParams p, int64_t first_head) {
  const bool is_key = blockIdx.z == 0;
  const PackedWrite& w = is_key ? p.key : p.value;
  const int64_t token = blockIdx.x, head = first_head + blockIdx.y;
  const auto scale = Move::scale(w.scale + head * w.scale_stride_head);
  const int64_t index = p.slots.mapping.at(token);
  const char* source = static_cast<const char*>(w.source) +
                       (token * w.source_stride_token + head * w.source_stride_head) * num_bytes(p.dtype);
  for (int64_t dim = threadIdx.x; dim < p.head_size; dim += kThreads) {
    const auto value = Move::Source::read(source + dim * Move::kSourceBytes);
    if (!is_slot(p.slots, index)) return;
    const auto [block, offset] = slot_of(p.slots, index);
    const int64_t row = is_key ? offset : dim, packed = is_key ? dim : offset;
    const auto vector = static_cast<int64_t>(quotient_of(packed, w.vector_size));
    const int64_t element = block * w.cache_stride_block + head * w.cache_stride_head + vector * w.cache_stride_vector +
                            row * w.cache_stride_row + packed - vector * static_cast<int64_t>(w.vector_size.value);
    Move(scale, p.format)(value).write(static_cast<char*>(w.cache) + element * Move::kCacheBytes);
  }
}

}  // namespace

void launch(const ReshapeAndCacheFlashParams& p, const Context& context) {
  const int64_t source_bytes = num_bytes(p.dtype);
  const int64_t cache_bytes = num_bytes(p.format, p.dtype);
  const int source_width = std::min(source_alignment(p.key, source_bytes), source_alignment(p.value, source_bytes));
  const int cache_width = std::min(cache_alignment(p.key, cache_bytes), cache_alignment(p.value, cache_bytes));
  with_moves(p.dtype, p.format, source_width, cache_width, [&]<class Move>() {
    ReshapeAndCacheFlashParams q = p;
    for (CacheWrite* w : {&q.key, &q.value}) *w = in_bytes(*w, source_bytes, cache_bytes, Move::kSourceBytes);
    const BlockShape shape = block_shape(std::max(q.key.head_size, q.value.head_size), p.num_heads, p.slots.num_tokens);
    launch_moves<Move>(p.slots.num_tokens, 2, context, shape, [&]<int kUnroll>() {
      const int64_t tile = shape.threads.z * kUnroll;
      for_each_grid((p.slots.num_tokens + tile - 1) / tile, shape, 2, [&](dim3 grid, int64_t first_head) {
        reshape_and_cache_flash_kernel<Move, kUnroll><<<grid, shape.threads, 0, context.stream>>>(q, first_head);
      });
    });
  });
}

void launch(const ReshapeAndCacheParams& p, const Context& context) {
  const int64_t source_bytes = num_bytes(p.dtype);
  const int64_t cache_bytes = num_bytes(p.format, p.dtype);
  const PackedWrite &k = p.key, &v = p.value;
  const auto source_width = [&](const PackedWrite& w) {
    return common_alignment(16, {address(w.source), p.head_size * source_bytes, w.source_stride_token * source_bytes,
                                 w.source_stride_head * source_bytes});
  };
  const int key_width = common_alignment(16, {address(k.cache), static_cast<int64_t>(k.vector_size.value) * cache_bytes,
                                              k.cache_stride_block * cache_bytes, k.cache_stride_head * cache_bytes,
                                              k.cache_stride_vector * cache_bytes, k.cache_stride_row * cache_bytes});
  const bool wide = std::min({key_width, source_width(k), source_width(v)}) == 16;
  const auto run_tiles = [&]<class Move, class Element, int kTokens>() {
    const BlockShape shape = {dim3(kThreads), (p.slots.num_tokens - 1) / kTokens + 1};
    // Values after keys, not beside them, where there is much code: they would wait for each other's instructions.
    const int64_t beside = p.format == CacheFormat::kSame ? 2 : 1;
    for_each_grid(beside * p.num_heads, shape, 2 / beside, [&](dim3 grid, int64_t first_tile) {
      reshape_and_cache_kernel<Move, Element, kTokens>
          <<<grid, shape.threads, 0, context.stream>>>(p, first_tile / shape.threads.y);
    });
  };
  const auto run = [&]<class Wide, class Narrow, class Element>() {
    constexpr int kMany = 64, kFew = 16;
    if (p.slots.num_tokens <= kFew) {
      const BlockShape shape = {dim3(kThreads), p.num_heads};
      return for_each_grid(p.slots.num_tokens, shape, 2, [&](dim3 grid, int64_t first_head) {
        reshape_and_cache_elements_kernel<Narrow><<<grid, shape.threads, 0, context.stream>>>(p, first_head);
      });
    }
    if (!wide) return run_tiles.template operator()<Narrow, Element, kRun>();
    const bool is_small = p.slots.num_tokens / kMany * 2 * p.num_heads <= 4 * context.num_multiprocessors;
    if (is_small) run_tiles.template operator()<Wide, Element, kRun>();
    else run_tiles.template operator()<Wide, Element, kMany>();
  };
  if (p.format == CacheFormat::kSame) {
    if (source_bytes == 4) return run.template operator()<Copy<16>, Copy<4>, uint32_t>();
    return run.template operator()<Copy<16>, Copy<2>, uint16_t>();
  }
  with_dtype(p.dtype,
             [&]<Float kDtype>() { run.template operator()<Quantise<kDtype, 8>, Quantise<kDtype, 1>, uint8_t>(); });
}

}  // namespace multikv::gpu
