// Joins the partial results of the tiles that the split kernel has divided over workers.
//
// Joining is a chain: o = o * first[i] + second[i] * o[i], in ascending order of the granules i. first and second
// depend on m alone, and the largest m of the granules up to i is found with a parallel scan. So a thread block
// computes first and second for kBatch granules at a time, loads their outputs into shared memory, and then follows the
// chain. The bits are those of join() of numbers.cuh.
#include "cuda/attention/launch_attention.h"
#include "cuda/attention/partials.cuh"
#include "vendor/launch_early.cuh"

namespace multikv::gpu {
namespace {

constexpr int kJoinThreads = 128, kBatch = kJoinThreads, kColumns = 32, kFew = 24;

// The granules of one batch.
struct JoinBatch {
  float first[kBatch];
  float second[kBatch];             // -1: the granule has no keys
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
        lane_(threadIdx.x % 32), warp_(threadIdx.x / 32) {}

  __device__ void run() {
    const int64_t size = list_.size();
    for (int64_t begin = 0; begin < size; begin += kBatch) {
      const int count = static_cast<int>(min(size - begin, int64_t{kBatch}));
      weigh(begin, count);
      load(begin, count);
      __syncthreads();
      if (warp_ == 0) o_ = chain(o_, &batch_.outputs[0][lane_], kColumns, count);
      if (warp_ == 1) o_ = chain(o_, batch_.sums, 1, count);  // l
      __syncthreads();
    }
    if (warp_ == 1 && lane_ == 0) batch_.sums[0] = o_;
    __syncthreads();
    if (warp_ == 0) store(batch_.sums[0]);
    __syncthreads();
  }

 private:
  // Computes first and second of this thread's granule.
  __device__ void weigh(int64_t begin, int count) {
    const int thread = threadIdx.x;
    float2 state = {0.0f, 0.0f};
    if (thread < count) state = Partials(p_).state(list_.slot(begin + thread), row_);
    const bool is_empty = state.y == 0.0f;
    const float m = is_empty ? kNoScore : state.x;
    float largest = m;  // of the granules up to this one
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const float other = shuffle(largest, max(lane_ - distance, 0));
      if (lane_ >= distance) largest = fmaxf(largest, other);
    }
    if (lane_ == 31) batch_.warp_largest[warp_] = largest;
    float before = shuffle(largest, max(lane_ - 1, 0));
    if (lane_ == 0) before = kNoScore;
    __syncthreads();
    float earlier = m_;
    for (int w = 0; w < kJoinThreads / 32; ++w) {
      if (w < warp_) earlier = fmaxf(earlier, batch_.warp_largest[w]);
      m_ = fmaxf(m_, batch_.warp_largest[w]);
    }
    before = fmaxf(before, earlier);
    largest = fmaxf(largest, earlier);
    const float second = is_empty ? 0.0f : exp2_approximate(__fsub_rn(m, largest));
    batch_.first[thread] = is_empty ? 1.0f : exp2_approximate(__fsub_rn(before, largest));
    batch_.second[thread] = is_empty ? -1.0f : second;
    batch_.sums[thread] = is_empty ? 0.0f : __fmul_rn(state.y, second);
    __syncthreads();
  }

  // Loads the outputs of a batch, and multiplies them.
  __device__ void load(int64_t begin, int count) {
    constexpr int kWarps = kJoinThreads / 32, kLoads = 16;
    const int column = min(first_column_ + lane_, p_.value_size - 1);
    const Partials partials(p_);
    for (int group = warp_; group < count; group += kWarps * kLoads) {
      float outputs[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        outputs[i] = partials.output(list_.slot(begin + min(group + i * kWarps, count - 1)), row_)[column];
      }
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int at = group + i * kWarps;
        if (at >= count) continue;
        const float second = batch_.second[at];
        batch_.outputs[at][lane_] = second < 0.0f ? 0.0f : __fmul_rn(outputs[i], second);
      }
    }
  }

  __device__ float chain(float value, const float* added, int stride, int count) const {
#pragma unroll 8
    for (int i = 0; i < count; ++i) value = __fmaf_rn(value, batch_.first[i], added[i * stride]);
    return value;
  }

  __device__ void store(float l) const {
    const RowOwner owner(p_, segment_, row_);
    const Finish result = finish_row(p_, segment_, owner, m_, l);
    const int column = first_column_ + lane_;
    if (column < p_.value_size) {
      store_output(p_, owner.token, owner.head, column, result.is_empty ? 0.0f : __fmul_rn(o_, result.factor));
    }
    if (column == 0) store_lse(p_, owner, result);
  }

  const AttentionProblem& p_;
  const Segment& segment_;
  const PartialList& list_;
  const int row_, first_column_;
  JoinBatch& batch_;
  const int lane_, warp_;
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
