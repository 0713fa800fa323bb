// Joins the partial results of the tiles that the split kernel has divided over workers.
//
// Joining is a chain: o = o * first[i] + o[i] * second[i], in ascending order of the granules i. The factors first[i]
// and second[i] are computed from m[i] and the largest m of the granules before i, which a parallel scan finds. So a
// thread block computes the factors of kBatch granules at a time, loads the outputs o[i] of these granules into shared
// memory, and then follows the chain. The results have the same bits as those of join() in numbers.cuh.
#include "cuda/attention/launch_attention.h"
#include "cuda/attention/partials.cuh"
#include "vendor/launch_early.cuh"

namespace multikv::gpu {
namespace {

constexpr int kJoinThreads = 128, kPerThread = 4, kBatch = kPerThread * kJoinThreads, kColumns = 8, kFew = 48;

// The granules of one batch.
struct JoinBatch {
  float first[kBatch];
  float second[kBatch];             // -1: no key of the granule has a weight
  float sums[kBatch];               // second * l
  float outputs[kBatch][kColumns];  // second * o
  float warp_largest[kJoinThreads / 32];
};

// One row and kColumns columns of a tile, and the result of the batches so far.
class RowJoin {
 public:
  __device__ RowJoin(const AttentionProblem& p, const Segment& segment, const PartialList& list, int row,
                     int first_column, JoinBatch& batch)
      : p_(p), segment_(segment), list_(list), row_(row), first_column_(first_column), batch_(batch),
        lane_(threadIdx.x % 32), warp_(threadIdx.x / 32), column_(threadIdx.x % kColumns) {}

  __device__ void run() {
    const int64_t size = list_.size();
    for (int64_t begin = 0; begin < size; begin += kBatch) {
      const int count = static_cast<int>(min(size - begin, int64_t{kBatch}));
      weigh(begin, count);
      load(begin, count);
      __syncthreads();
      if (warp_ == 0) o_ = chain(o_, &batch_.outputs[0][column_], kColumns, count);
      if (warp_ == 1) o_ = chain(o_, batch_.sums, 1, count);  // l
      __syncthreads();
    }
    if (warp_ == 1 && lane_ == 0) batch_.sums[0] = o_;
    __syncthreads();
    if (warp_ == 0) store(batch_.sums[0]);
    __syncthreads();
  }

 private:
  // Computes first and second of this thread's granules.
  __device__ void weigh(int64_t begin, int count) {
    const int first_granule = threadIdx.x * kPerThread;
    float2 states[kPerThread];
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      states[i] = {0.0f, 0.0f};
      if (first_granule + i < count) states[i] = Partials(p_).state(list_.slot(begin + first_granule + i), row_);
    }
    float largest = kNoScore;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      if (states[i].y != 0.0f) largest = fmaxf(largest, states[i].x);
    }
    float before = largest_before(largest);  // the largest m of the granules before
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const float m = states[i].x, l = states[i].y;
      const bool is_empty = l == 0.0f;
      const float joined_largest = is_empty ? before : fmaxf(before, m);
      const float second = is_empty ? 0.0f : exp2_approximate(__fsub_rn(m, joined_largest));
      const int granule = first_granule + i;
      batch_.first[granule] = is_empty ? 1.0f : exp2_approximate(__fsub_rn(before, joined_largest));
      batch_.second[granule] = is_empty ? -1.0f : second;
      batch_.sums[granule] = is_empty ? 0.0f : __fmul_rn(l, second);
      before = joined_largest;
    }
    __syncthreads();
  }

  // `largest` is the largest m of this thread's granules. Returns the largest m of all granules before these, and
  // updates m_, the largest m so far, with the whole batch.
  __device__ float largest_before(float largest) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other = shuffle(largest, max(lane_ - distance, 0));
      if (lane_ >= distance) largest = fmaxf(largest, other);
    }
    if (lane_ == 31) batch_.warp_largest[warp_] = largest;
    float before = shuffle(largest, max(lane_ - 1, 0));
    if (lane_ == 0) before = kNoScore;
    __syncthreads();
    before = fmaxf(before, m_);
    for (int w = 0; w < kJoinThreads / 32; ++w) {
      if (w < warp_) before = fmaxf(before, batch_.warp_largest[w]);
      m_ = fmaxf(m_, batch_.warp_largest[w]);
    }
    return before;
  }

  // Loads the outputs of a batch, and multiplies each by the `second` of its granule.
  __device__ void load(int64_t begin, int count) {
    constexpr int kAtOnce = kJoinThreads / kColumns, kLoads = 16;
    const int column = min(first_column_ + column_, p_.value_size - 1);
    const Partials partials(p_);
    for (int group = threadIdx.x / kColumns; group < count; group += kAtOnce * kLoads) {
      float outputs[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        outputs[i] = partials.output(list_.slot(begin + min(group + i * kAtOnce, count - 1)), row_)[column];
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int at = group + i * kAtOnce;
        if (at >= count) continue;
        const float second = batch_.second[at];
        batch_.outputs[at][column_] = second < 0.0f ? 0.0f : __fmul_rn(outputs[i], second);
      }
    }
  }

  __device__ float chain(float value, const float* added, int stride, int count) const {
#pragma unroll 16
    for (int i = 0; i < count; ++i) value = __fmaf_rn(value, batch_.first[i], added[i * stride]);
    return value;
  }

  __device__ void store(float l) const {
    const RowOwner owner(p_, segment_, row_);
    const Finish result = finish_row(p_, segment_, owner, m_, l);
    const int column = first_column_ + lane_;
    if (lane_ < kColumns && column < p_.value_size) {
      store_output(p_, owner.token, owner.head, column, result.is_empty ? 0.0f : __fmul_rn(o_, result.factor));
    }
    if (column == 0) store_lse(p_, owner, result);
  }

  const AttentionProblem& p_;
  const Segment& segment_;
  const PartialList& list_;
  const int row_, first_column_;
  JoinBatch& batch_;
  const int lane_, warp_, column_;
  float m_ = kNoScore, o_ = 0.0f;
};

// Joins few partial results: each thread follows the chain of an element of its own.
__device__ void join_few(const AttentionProblem& p, const Segment& segment, const PartialList& list, int64_t helper,
                         int64_t helpers) {
  constexpr int kLoads = 8;
  const Partials partials(p);
  const int columns = p.value_size, elements = segment.num_rows * columns, size = static_cast<int>(list.size());
#pragma unroll 1
  for (int64_t element = helper * kJoinThreads + threadIdx.x; element < elements; element += helpers * kJoinThreads) {
    const int row = static_cast<int>(element) / columns, column = static_cast<int>(element) - row * columns;
    float m = 0.0f, l = 0.0f, o = 0.0f;
#pragma unroll 1
    for (int begin = 0; begin < size; begin += kLoads) {
      float2 states[kLoads];
      float outputs[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int64_t slot = list.slot(min(begin + i, size - 1));
        states[i] = partials.state(slot, row);
        outputs[i] = partials.output(slot, row)[column];
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        if (begin + i >= size) continue;
        const JoinWeights weights = join(m, l, states[i].x, states[i].y);
        o = joined(weights, o, outputs[i]);
        m = weights.m;
        l = weights.l;
      }
    }
    const RowOwner owner(p, segment, row);
    const Finish result = finish_row(p, segment, owner, m, l);
    store_output(p, owner.token, owner.head, column, result.is_empty ? 0.0f : __fmul_rn(o, result.factor));
    if (column == 0) store_lse(p, owner, result);
  }
}

// Thread block i looks at the tile in which worker i + 1 begins. The thread blocks whose workers begin inside the same
// tile share its rows and columns.
__global__ void MULTIKV_LAUNCH_BOUNDS(kJoinThreads, 8) join_kernel(const MULTIKV_GRID_CONSTANT AttentionProblem p) {
  __shared__ JoinBatch batch;
  const WorkStart& start = find_start<SplitTiles>(p, static_cast<int64_t>(blockIdx.x) + 1, int64_t{gridDim.x} + 1);
  if (start.total > p.num_slots || start.is_idle()) return;
  __shared__ Segment segment;
  if (threadIdx.x == 0) {
    Segments<SplitTiles> segments;
    segments.start(p, start);
    segments.take(p, segment);
  }
  __syncthreads();
  if (segment.granules.begin == segment.tile_granules.begin) return;  // the worker begins with a tile of its own
  const Shares shares = start.shares();
  const int64_t units = max(segment.tile_granules.size(), 1);
  const int64_t first = shares.worker_of(segment.tile_unit);
  const int64_t helpers = shares.worker_of(segment.tile_unit + units - 1) - first;
  const PartialList list(segment, shares);
  wait_for_previous_launch();
  if (list.size() <= kFew) return join_few(p, segment, list, start.worker - first - 1, helpers);
  const int parts = (p.value_size + kColumns - 1) / kColumns;
  for (int64_t item = start.worker - first - 1; item < int64_t{segment.num_rows} * parts; item += helpers) {
    const int row = static_cast<int>(item) / parts, part = static_cast<int>(item) - row * parts;
    RowJoin(p, segment, list, row, part * kColumns, batch).run();
  }
}

}  // namespace

cudaError_t launch_join(const AttentionProblem& p, int64_t num_workers, const Context& context) {
  if (num_workers <= 1) return cudaSuccess;
  return launch_early(join_kernel, static_cast<unsigned>(num_workers - 1), kJoinThreads, context.stream, p);
}

}  // namespace multikv::gpu
