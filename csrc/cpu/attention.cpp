#include "cpu/attention.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "cpu/launch.h"
#include "cpu/scratch.h"

namespace multikv::cpu {
namespace {

// The jobs of a call. Its units of work are the granules of all jobs, in the order of the jobs.
class Jobs {
 public:
  Jobs(const PagedAttentionParams& p, int64_t most_heads) : p_(&p), most_heads_(most_heads) {}

  // Calls visit(job) for every job, until it returns false.
  template <class Visit>
  void for_each(const Visit& visit) const {
    const AttentionSequences& sequences = p_->sequences;
    for (int64_t s = 0; s < sequences.num_sequences; ++s) {
      const bool has_bounds = sequences.cu_query_lens.is_given();
      const int64_t first_row = has_bounds ? sequences.cu_query_lens.at(s) : s;
      const int64_t q_len = has_bounds ? sequences.cu_query_lens.at(s + 1) - first_row : 1;
      const int64_t most_tokens = std::max<int64_t>(1, kRows / p_->heads_per_kv_head());
      const int64_t most_rows = std::min(q_len, most_tokens) * p_->heads_per_kv_head();
      const int64_t heads = std::clamp<int64_t>(q_len == 0 ? 1 : kRows / most_rows, 1, most_heads_);
      for (int64_t token = 0; token < q_len; token += most_tokens) {
        for (int64_t head = 0; head < p_->num_kv_heads; head += heads) {
          AttentionJob job{};
          job.sequence = s;
          job.length = sequences.seq_lens.at(s);
          job.first_row = first_row + token;
          job.first_position = job.length - q_len + token;
          job.num_tokens = std::min(most_tokens, q_len - token);
          job.mask_base = job.length - q_len;
          job.first_head = head;
          job.num_heads = std::min(heads, p_->num_kv_heads - head);
          set_granules(job);
          if (!visit(job)) return;
        }
      }
    }
  }

 private:
  // A compromise: with more rows a key is decoded less often, and with fewer rows the arrays of a job fit a smaller L2.
  static constexpr int64_t kRows = 64;

  // A job without visible keys has one granule, so that its result is written.
  void set_granules(AttentionJob& job) const {
    const AttentionOptions& options = p_->options;
    const int64_t first = std::max<int64_t>(0, job.first_position), last = job.first_position + job.num_tokens - 1;
    const int64_t begin = options.window_left < 0 ? 0 : std::max<int64_t>(0, first - options.window_left);
    const bool is_bounded = options.is_causal && options.query_mask == nullptr;
    const int64_t end = last < 0 ? 0 : is_bounded ? std::min(job.length, last + 1) : job.length;
    job.begin_granule = begin / AttentionJob::kGranule;
    const int64_t end_granule = (end + AttentionJob::kGranule - 1) / AttentionJob::kGranule;
    job.end_granule = std::max(end_granule, job.begin_granule + 1);
  }

  const PagedAttentionParams* p_;
  int64_t most_heads_;
};

// How much work there is.
struct Amount {
  int64_t units = 0, bytes = 0;

  static Amount of(const PagedAttentionParams& p, const Jobs& jobs) {
    Amount amount;
    const int64_t bytes_per_key = p.codec().num_bytes(p.head_size + p.value_size);
    jobs.for_each([&](const AttentionJob& job) {
      amount.units += job.num_granules();
      const int64_t keys = std::min(job.length, job.num_granules() * AttentionJob::kGranule);
      // The products of four rows take about as long as the read from memory.
      const int64_t weight = std::max<int64_t>(1, job.num_tokens * p.heads_per_kv_head() / 4);
      amount.bytes += job.num_heads * keys * bytes_per_key * weight;
      return true;
    });
    return amount;
  }
  int64_t bytes_per_unit() const { return units == 0 ? 0 : bytes / units; }
};

// The pieces of jobs that were cut between two threads, with their partial results.
class CutPieces {
 public:
  // Gives the piece memory for its partial results.
  void add(AttentionPiece& piece) {
    const int64_t floats = AttentionSizes::of(*piece.params, piece.job).partial_floats(piece.job.num_heads);
    auto memory = std::make_unique_for_overwrite<float[]>(piece.num_partials() * floats);
    piece.partials = memory.get();
    const std::lock_guard lock(mutex_);
    memory_.push_back(std::move(memory));
    pieces_.push_back(piece);
  }

  // Joins the pieces of each job, and writes the results.
  void join() {
    const auto job = [](const AttentionPiece& piece) { return std::tuple(piece.job.first_row, piece.job.first_head); };
    std::sort(pieces_.begin(), pieces_.end(), [&](const AttentionPiece& a, const AttentionPiece& b) {
      return std::tuple(job(a), a.begin) < std::tuple(job(b), b.begin);
    });
    for (auto first = pieces_.begin(); first != pieces_.end();) {
      const auto last =
          std::find_if(first, pieces_.end(), [&](const auto& piece) { return job(piece) != job(*first); });
      join({first->params, first->job, &*first, last - first});
      first = last;
    }
  }

 private:
  static void join(const AttentionJoin& pieces) {
    const AttentionSizes sizes = AttentionSizes::of(*pieces.params, pieces.job);
    const int64_t bytes_per_row = pieces.job.num_granules() * sizes.partial_size() * sizeof(float);
    parallel_for(pieces.job.num_heads * sizes.rows, bytes_per_row,
                 [&](int64_t begin, int64_t end) { run_on_active_isa(pieces, begin, end, Stores::kOrdinary); });
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<float[]>> memory_;
  std::vector<AttentionPiece> pieces_;
};

// Runs the units [begin, end).
void run_units(const PagedAttentionParams& p, const Jobs& jobs, int64_t begin, int64_t end, CutPieces& cut) {
  int64_t unit = 0;  // the first of the job
  jobs.for_each([&](const AttentionJob& job) {
    const int64_t first = std::max(begin - unit, int64_t{0}), last = std::min(end - unit, job.num_granules());
    unit += job.num_granules();
    if (first < last) {
      AttentionPiece piece{&p, job, job.begin_granule + first, job.begin_granule + last, nullptr, nullptr};
      piece.scratch = scratch_of_thread(AttentionScratch::of(p, job).num_bytes);
      if (!piece.is_whole()) cut.add(piece);
      run_on_active_isa(piece, 0, 1, Stores::kOrdinary);
    }
    return unit < end;
  });
}

}  // namespace

void launch(const PagedAttentionParams& p) {
  uint32_t num_threads = 1;
  TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&num_threads));
  constexpr int64_t kUnitsPerThread = 8;
  Jobs jobs(p, p.num_kv_heads);
  Amount amount = Amount::of(p, jobs);
  if (num_threads > 1 && amount.units < kUnitsPerThread * num_threads) {
    jobs = Jobs(p, 1);
    amount = Amount::of(p, jobs);
  }
  CutPieces cut;
  parallel_for(amount.units, amount.bytes_per_unit(),
               [&](int64_t begin, int64_t end) { run_units(p, jobs, begin, end, cut); });
  cut.join();
}

}  // namespace multikv::cpu
