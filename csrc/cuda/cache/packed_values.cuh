// Writes values to the packed layout: [blocks, heads, block_size / vector_size, head_size, vector_size].
//
// In the source, the dimensions of a token are contiguous. In the cache, vector_size tokens of a dimension are
// contiguous. So values are transposed in shared memory:
//
//   source  token 0: d0 d1 d2 ...       cache  d0: token 0, token 1, ...
//           token 1: d0 d1 d2 ...              d1: token 0, token 1, ...
#pragma once

#include "cuda/cache/packed_keys.cuh"

namespace multikv::gpu {

constexpr int kDims = 128;  // the number of dimensions that are transposed at a time
constexpr int kRun = 16;    // the tokens of a run: neighbours in the cache, written by stores of 16 bytes

// Returns a word of the transposed values: element `column` of each of kPerWord rows, that of rows[0] in the low bits.
// Stored is the unsigned integer that is as wide as an element of the cache; kPerWord = 4 / sizeof(Stored). For
// kPerWord = 2:
//
//   rows[0]   a0 a1 | a2 a3       column_of(rows, 0)   a0 b0
//   rows[1]   b0 b1 | b2 b3       column_of(rows, 3)   a3 b3
template <class Stored, int kPerWord>
__device__ inline uint32_t column_of(const uint32_t* const (&rows)[kPerWord], int column) {
  if constexpr (kPerWord == 1) {
    return rows[0][column];
  } else if constexpr (kPerWord == 2) {
    return __byte_perm(rows[0][column / 2], rows[1][column / 2], column % 2 == 0 ? 0x5410 : 0x7632);
  } else {
    // Each inner __byte_perm puts the elements of two rows into bytes 0 and 1; the outer one joins the two pairs.
    const int word = column / 4, selector = column % 4 | (column % 4 + 4) << 4;
    return __byte_perm(__byte_perm(rows[0][word], rows[1][word], selector),
                       __byte_perm(rows[2][word], rows[3][word], selector), 0x5410);
  }
}

// Transposed values in shared memory. words[dim] holds the tokens of one dimension, kPerWord tokens in each word.
template <class Stored, int kTokens>
struct TransposedValues {
  static constexpr int kPerWord = 4 / sizeof(Stored), kWords = kTokens / kPerWord;
  static constexpr int kLocators = kTokens < 32 ? 32 : kTokens;  // the threads that locate tokens: whole warps
  uint32_t words[kDims][kWords + 1];
  int64_t offsets_bytes[kLocators];  // of dimension 0 of each token, from the start of the cache; -1: skipped
  bool is_run[kLocators / kRun];     // whether kRun tokens are neighbours in the cache

  // Rotates the words of a dimension by 2 for every 32 dimensions. Together with the padding word of each dimension,
  // the rotation spreads both a warp's writes (of dimensions that are a vector apart) and its reads (of neighbouring
  // dimensions) over the banks of shared memory.
  __device__ uint32_t& word(int dim, int word) {
    return words[dim][static_cast<unsigned>(word + dim / 32 * 2) % kWords];
  }
  __device__ Stored element(int dim, int token) {
    return static_cast<Stored>(word(dim, token / kPerWord) >> (token % kPerWord * 8 * sizeof(Stored) % 32));
  }
};

// Computes the offsets of the tokens, and which groups of kRun tokens are runs. kLocators threads must call: one for
// each token, and the rest of the last warp with index -1.
template <class Stored, int kTokens>
__device__ inline void locate_values(const ReshapeAndCacheParams& p, TransposedValues<Stored, kTokens>& values,
                                     int64_t head, int64_t index, int token) {
  constexpr int kBytes = sizeof(Stored);
  const PackedValueCache& cache = p.value.cache;
  int64_t offset_bytes = -1;
  if (is_slot(p.blocks(), index)) {
    offset_bytes = cache.element(split(p.blocks(), index), head, 0, kBytes, divide_index) - cache.data;
  }
  values.offsets_bytes[token] = offset_bytes;
  const int lane = token % 32, begin = lane / kRun * kRun;
  const int64_t first = shuffle(offset_bytes, begin);
  const bool is_aligned = (reinterpret_cast<uintptr_t>(cache.data + first) | cache.stride_row_bytes) % 16 == 0;
  const uint32_t neighbours = ballot(offset_bytes >= 0 && offset_bytes == first + (lane - begin) * kBytes) >> begin;
  if (lane == begin) values.is_run[token / kRun] = is_aligned && (neighbours & 0xffff) == 0xffff;
}

// The source of a transposition: num_tokens rows of `dims` dimensions.
struct ValueRows {
  const char* data;
  int64_t stride_token_bytes;
  int num_tokens, dims;
};

// Reads up to kTokens rows, and writes them to shared memory transposed. A task of a thread is one vector of each of
// the kPerWord tokens that share a word.
template <VectorMove Move, class Stored, int kTokens>
__device__ __forceinline__ void transpose_values(const ValueRows& source, typename Move::Scale scale, Element element,
                                                 TransposedValues<Stored, kTokens>& out) {
  using Values = TransposedValues<Stored, kTokens>;
  constexpr int kPerWord = Values::kPerWord, kVector = Move::kCacheBytes / static_cast<int>(sizeof(Stored));
  // The tasks that a thread has in flight: as many as hold 4 vectors, but only one task for single elements and for
  // small chunks.
  constexpr int kUnroll = (kVector == 1 || kPerWord == 4 || kTokens < 64) ? 1 : 4 / kPerWord;
  const int vectors = source.dims / kVector, num_tasks = vectors * Values::kWords;
  const SmallDivisor tasks_per_word = SmallDivisor::of(vectors);
  for (int first_task = threadIdx.x; first_task < num_tasks; first_task += kUnroll * kThreads) {
    typename Move::Source values[kUnroll][kPerWord];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int task = first_task + i * kThreads, word = tasks_per_word.divide(task), vector = task - word * vectors;
      const char* from = source.data + word * kPerWord * source.stride_token_bytes + vector * Move::kSourceBytes;
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) {
        // This also skips the tasks from num_tasks on: their words are kWords and above, which hold no token.
        if (word * kPerWord + k < source.num_tokens)
          values[i][k] = Move::Source::template read<true>(from + k * source.stride_token_bytes);
      }
    }
    const Move move(scale, element);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int task = first_task + i * kThreads, word = tasks_per_word.divide(task), vector = task - word * vectors;
      if (task >= num_tasks) continue;
      Pack<Move::kCacheBytes> rows[kPerWord];
      const uint32_t* row_words[kPerWord];
#pragma unroll
      for (int k = 0; k < kPerWord; ++k) row_words[k] = (rows[k] = move(values[i][k])).words;
#pragma unroll
      for (int d = 0; d < kVector; ++d)
        out.word(vector * kVector + d, word) = column_of<Stored, kPerWord>(row_words, d);
    }
  }
}

// Writes the runs by stores of 16 bytes. kPieces neighbouring lanes write the run of one dimension. The first of the
// `dims` dimensions of a token is written to `cache` + the token's offset.
template <class Stored, int kTokens>
__device__ __forceinline__ void write_runs(TransposedValues<Stored, kTokens>& values, int dims, char* cache,
                                           int64_t stride_row_bytes) {
  constexpr int kPerWord = TransposedValues<Stored, kTokens>::kPerWord, kRuns = kTokens / kRun;
  constexpr int kPieces = kRun * sizeof(Stored) / 16, kStep = kThreads / kRuns / kPieces;
  const int thread = threadIdx.x, lane = thread % 32, run = thread / 32 % kRuns;
  if (!values.is_run[run]) return;
  const int piece = lane % kPieces;
  char* to = cache + values.offsets_bytes[run * kRun] + piece * 16;
  for (int dim = (thread / (32 * kRuns) * 32 + lane) / kPieces; dim < dims; dim += kStep) {
    Pack<16> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.words[i] = values.word(dim, run * (kRun / kPerWord) + piece * 4 + i);
    out.template write<true>(to + dim * stride_row_bytes);
  }
}

// Writes the tokens that belong to no run, element by element.
template <class Stored, int kTokens>
__device__ __forceinline__ void write_elements(TransposedValues<Stored, kTokens>& values, int num_tokens, int dims,
                                               char* cache, int64_t stride_row_bytes) {
  const int thread = threadIdx.x, first_dim = thread / kRun;
  for (int run_begin = 0; run_begin < num_tokens; run_begin += kRun) {
    const int token = run_begin + thread % kRun;
    const int64_t offset_bytes = values.offsets_bytes[token];
    if (values.is_run[run_begin / kRun] || offset_bytes < 0) continue;
    char* to = cache + offset_bytes + first_dim * stride_row_bytes;
#pragma unroll 4
    for (int dim = first_dim; dim < dims; dim += kThreads / kRun, to += kThreads / kRun * stride_row_bytes) {
      *reinterpret_cast<Stored*>(to) = values.element(dim, token);
    }
  }
}

// Writes the values of one head of kTokens tokens from `first` on, kDims dimensions at a time. index_of(token) returns
// the index of the token's slot.
template <VectorMove Move, class Stored, int kTokens, class IndexOf>
__device__ inline void write_packed_values(const ReshapeAndCacheParams& p, int64_t head, int64_t first,
                                           IndexOf index_of) {
  __shared__ TransposedValues<Stored, kTokens> values;
  constexpr int kVector = Move::kCacheBytes / static_cast<int>(sizeof(Stored));
  constexpr int64_t kSourceElementBytes = Move::kSourceBytes / kVector;
  const TokenHeads& source = p.value.source;
  const PackedValueCache& cache = p.value.cache;
  const int64_t remaining = p.slots.num_tokens - first;
  const int num_tokens = static_cast<int>(remaining < kTokens ? remaining : kTokens);
  const auto scale = Move::scale(cache.scale_of(head));
  const int thread = threadIdx.x;
  const int64_t index = thread < num_tokens ? index_of(first + thread) : -1;

  for (int64_t begin = 0; begin < p.head_size; begin += kDims) {
    const int dims = static_cast<int>(p.head_size - begin < kDims ? p.head_size - begin : kDims);
    const char* from = source.head(first, head) + begin * kSourceElementBytes;
    transpose_values<Move>(ValueRows{from, source.stride_token_bytes, num_tokens, dims}, scale, cache.codec.element,
                           values);
    if (begin == 0 && thread < values.kLocators) locate_values(p, values, head, index, thread);
    __syncthreads();
    char* to = cache.data + begin * cache.stride_row_bytes;
    write_runs(values, dims, to, cache.stride_row_bytes);
    write_elements(values, num_tokens, dims, to, cache.stride_row_bytes);
    __syncthreads();
  }
}

}  // namespace multikv::gpu
