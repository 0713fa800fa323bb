// Attention without matrix instructions: float32, every format, any head size, any GPU. A thread block attends for one
// query head of one query token.
#include "cuda/attention/launch_attention.h"
#include "cuda/attention/partials.cuh"
#include "cuda/cache/slots.cuh"
#include "cuda/core/fp8_convert.cuh"

namespace multikv::gpu {
namespace {

__device__ inline float load_element(const char* from, Element type) {
  switch (type) {
    case Element::kFloat32: return *reinterpret_cast<const float*>(from);
    case Element::kFloat16: return load_float16(*reinterpret_cast<const uint16_t*>(from), Float::kFloat16);
    case Element::kBFloat16: return load_float16(*reinterpret_cast<const uint16_t*>(from), Float::kBFloat16);
    case Element::kE4M3FN:
    case Element::kE5M2:
    case Element::kE4M3FNUZ:
    case Element::kE5M2FNUZ: return decode_fp8(*reinterpret_cast<const uint8_t*>(from), layout_of(type));
    case Element::kInt8:
    case Element::kInt4:
    case Element::kE2M1: break;
  }
  return 0.0f;
}

// Loads element i of the head that starts `slot` bytes after the start of the cache.
template <class Load>
__device__ inline float element_at(const CacheSource& cache, int64_t slot, int i, Load load) {
  const auto group = static_cast<int64_t>(quotient_of(i, cache.elements_per_group));
  return load(cache.data + slot + group * cache.stride_element_group_bytes +
              (i - group * cache.elements_per_group.signed_value()) * cache.stride_element_bytes);
}

__device__ inline int64_t slot_offset(const CacheSource& cache, BlockOffset at, int64_t head) {
  const auto group = static_cast<int64_t>(quotient_of(at.offset, cache.slots_per_group));
  return at.block * cache.stride_block_bytes + head * cache.stride_head_bytes + group * cache.stride_slot_group_bytes +
         (at.offset - group * cache.slots_per_group.signed_value()) * cache.stride_slot_bytes;
}

// Combines a value of each thread in a fixed order. All threads call it, and all get the result.
template <class Combine>
__device__ inline float reduce(float value, Combine combine) {
  __shared__ float values[kThreads];
  __syncthreads();
  values[threadIdx.x] = value;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      values[threadIdx.x] = combine(values[threadIdx.x], values[threadIdx.x + half]);
    }
  }
  __syncthreads();
  return values[0];
}

// The keys of one granule.
struct GranuleKeys {
  float weights[kGranule];
  int64_t values[kGranule];  // where the value lies in its cache; -1 if the key is not visible
};

// Finds the sequence that owns a query token; -1 if there is none.
__device__ inline int64_t owner_of(const AttentionSequences& sequences, int64_t token) {
  if (!sequences.cu_query_lens.is_given()) return token < sequences.num_sequences ? token : -1;
  if (sequences.num_sequences == 0 || token < sequences.cu_query_lens.at(0)) return -1;
  // Binary search: cu_query_lens[low] <= token always holds, and so does cu_query_lens[high] > token unless high is the
  // number of sequences.
  int64_t low = 0, high = sequences.num_sequences;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (sequences.cu_query_lens.at(middle) <= token) low = middle;
    else high = middle;
  }
  return token < sequences.cu_query_lens.at(low + 1) ? low : -1;
}

// One query row and what it needs.
struct RowTask {
  int64_t sequence, head, kv_head;
  Visible visible;
  Scoring scoring;
  float coefficient, slope;
};

// Computes the score of a key; kNoScore if the key is not visible, and then value_offset is -1.
template <class Load>
__device__ inline float score_key(const AttentionProblem& p, const RowTask& row, const float* query, int key,
                                  int64_t& value_offset, Load load) {
  value_offset = -1;
  if (!row.visible.sees(key)) return kNoScore;
  const auto column = static_cast<int64_t>(quotient_of(key, p.blocks.block_size));
  const int64_t block = p.sequences.block_table.at(row.sequence, column);
  if (block < 0 || block >= p.blocks.num_blocks) return kNoScore;
  const BlockOffset at = {block, key - column * p.blocks.block_size.signed_value()};
  value_offset = slot_offset(p.value, at, row.kv_head);
  const int64_t slot = slot_offset(p.key, at, row.kv_head);
  float product = 0.0f;
#pragma unroll 4
  for (int i = 0; i < p.key_size; ++i) product = __fmaf_rn(query[i], element_at(p.key, slot, i, load), product);
  return row.scoring(product, row.coefficient, row.slope, key - row.visible.position);
}

// Attends over one granule, and joins the result to `total`. Returns m and l of the joined result.
template <class Load>
__device__ inline float2 add_granule(const AttentionProblem& p, const RowTask& row, const float* query, int first_key,
                                     float2 state, float* total, Load load) {
  __shared__ GranuleKeys keys;
  float scores[kGranule / kThreads];
  float largest = kNoScore;
#pragma unroll
  for (int i = 0; i < kGranule / kThreads; ++i) {
    const int at = threadIdx.x + i * kThreads;
    scores[i] = score_key(p, row, query, first_key + at, keys.values[at], load);
    largest = fmaxf(largest, scores[i]);
  }
  largest = reduce(largest, [](float a, float b) { return fmaxf(a, b); });
  const float m = largest == kNoScore ? 0.0f : largest;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kGranule / kThreads; ++i) {
    const float weight = exp2_approximate(__fsub_rn(scores[i], m));
    keys.weights[threadIdx.x + i * kThreads] = weight;
    sum = __fadd_rn(sum, weight);
  }
  const float l = reduce(sum, [](float a, float b) { return __fadd_rn(a, b); });
  const JoinWeights weights = join(state.x, state.y, m, l);
  for (int column = threadIdx.x; column < p.value_size; column += kThreads) {
    float o = 0.0f;
#pragma unroll 4
    for (int i = 0; i < kGranule; ++i) {
      if (keys.values[i] >= 0) o = __fmaf_rn(keys.weights[i], element_at(p.value, keys.values[i], column, load), o);
    }
    total[column] = joined(weights, total[column], o);
  }
  __syncthreads();
  return {weights.m, weights.l};
}

template <bool kIsFloat32>
__global__ void MULTIKV_LAUNCH_BOUNDS(kThreads, 8)
    portable_attention_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p, Divisor num_heads) {
  extern __shared__ float floats[];
  float *query = floats, *total = floats + p.key_size;
  const auto token = static_cast<int64_t>(quotient_of(blockIdx.x, num_heads));
  RowTask row;
  row.head = blockIdx.x - token * num_heads.signed_value();
  row.kv_head = static_cast<int64_t>(quotient_of(row.head, p.group));
  row.sequence = owner_of(p.sequences, token);
  if (row.sequence < 0) return;
  const Sequence sequence = sequence_of(p, row.sequence);
  const int64_t sequence_token = token - sequence.first_token;
  if (sequence_token >= sequence.num_tokens) return;
  row.visible = visible_to(p, sequence, static_cast<int>(sequence_token));
  row.scoring = Scoring::of(p.options, scale_of(p.key, row.kv_head));
  row.coefficient = Scoring::coefficient(p.options, scale_of(p.key, row.kv_head));
  row.slope = slope_of(p.options, row.head);
  const auto load = [&p](const char* from) {
    return kIsFloat32 ? load_element(from, Element::kFloat32) : load_element(from, p.element);
  };
  const char* from = p.query.head(token, row.head);
  for (int i = threadIdx.x; i < p.key_size; i += kThreads) {
    query[i] = load_element(from + i * num_bytes(p.dtype), element_of(p.dtype));
  }
  for (int i = threadIdx.x; i < p.value_size; i += kThreads) total[i] = 0.0f;
  __syncthreads();

  float2 state = {0.0f, 0.0f};
  const Range granules = granules_of(row.visible.keys);
  for (int granule = granules.begin; granule < granules.end; ++granule) {
    state = add_granule(p, row, query, granule * kGranule, state, total, load);
  }
  const Finish result = finish(state.x, state.y, sink_of(p.options, row.head), scale_of(p.value, row.kv_head));
  for (int i = threadIdx.x; i < p.value_size; i += kThreads) {
    store_output(p, token, row.head, i, result.is_empty ? 0.0f : __fmul_rn(total[i], result.factor));
  }
  if (threadIdx.x == 0 && p.lse.is_given()) {
    *reinterpret_cast<float*>(p.lse.data + row.head * p.lse.stride_head_bytes + token * p.lse.stride_token_bytes) =
        result.lse;
  }
}

}  // namespace

cudaError_t launch_portable_attention(const AttentionProblem& p, const Context& context) {
  // The size is rounded up to vectors of 16 bytes, because the compiler reads the query in such vectors, even past its
  // end.
  const int64_t bytes = ceil_div<int64_t>(int64_t{p.key_size} + p.value_size, 4) * 16;
  const int64_t blocks = p.sequences.num_rows * p.num_query_heads;
  constexpr int64_t kStaticBytes = 4096;
  if (bytes > shared_memory(context.device_index).block_bytes - kStaticBytes) return cudaErrorNotSupported;
  if (blocks > INT32_MAX) return cudaErrorNotSupported;
  const auto launch = [&]<bool kIsFloat32>() -> cudaError_t {
    if (bytes > 32'768) {
      MULTIKV_RETURN_IF_FAILED(
          allow_shared_memory<portable_attention_kernel<kIsFloat32>>(context.device_index, static_cast<int>(bytes)));
    }
    portable_attention_kernel<kIsFloat32>
        <<<static_cast<unsigned>(blocks), kThreads, bytes, context.stream>>>(p, Divisor::of(p.num_query_heads));
    return cudaGetLastError();
  };
  return p.element == Element::kFloat32 ? launch.template operator()<true>() : launch.template operator()<false>();
}

}  // namespace multikv::gpu
