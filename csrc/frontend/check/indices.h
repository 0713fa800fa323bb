// Index tensors, and the checks of their values.
//
// Values are checked on the host before anything is written. For a GPU the checks synchronise, so they run only on
// request (MULTIKV_CHECK_INDICES). Without them, the GPU's kernels skip the values that the checks would reject.
#pragma once

#include <vector>

#include "core/slots.h"
#include "frontend/check/call.h"

namespace multikv {

// Checks that a tensor is int32 or int64 and has `dim` dimensions, and returns its indices.
Indices indices_of(Call& call, std::string_view argument, const Tensor& tensor, int64_t dim);
// The same for a tensor whose device the caller has checked, because it need not be the device of the call.
Indices indices_on_any_device(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim);

// Checks slot_mapping [tokens], or [layers, tokens] if `dim` is 2. The values are not checked yet.
Slots make_slots(Call& call, const Tensor& slot_mapping, int64_t dim = 1);

// Fails unless every slot is negative, which means padding, or lies in one of the blocks. If there are no tokens, the
// call has nothing to do.
void check_slots(Call& call, const Slots& slots, const Blocks& blocks);
void check_slots_of_layers(Call& call, const Slots& slots, const Blocks& blocks, int64_t num_layers);

// Fails unless the position of every token is from 0 to num_positions - 1.
void check_positions(const Call& call, const Indices& positions, int64_t num_tokens, int64_t num_positions);

// The same for positions [3, tokens].
void check_positions_of_rows(const Call& call, const Indices& positions, int64_t num_tokens, int64_t num_positions);

// Returns whether the call checks the values of indices.
bool checks_indices(const Call& call);

// Returns the least i < count such that index i is below `low` or not below `high`; -1 if there is none. The host must
// be able to read the indices.
int64_t first_outside(const Indices& indices, int64_t count, int64_t low, int64_t high);

// An index tensor that the host can read. It is the tensor itself, or a copy if the tensor is in the memory of a GPU.
class HostIndices {
 public:
  HostIndices(const Call& call, const Indices& indices, int64_t rows, int64_t columns);
  // Takes indices that are already in the memory of the host.
  explicit HostIndices(const Indices& indices) : view_(indices) {}

  const Indices& view() const { return view_; }
  bool is_given() const { return view_.is_given(); }
  int64_t operator[](int64_t i) const { return view_.at(i); }
  int64_t at(int64_t row, int64_t column) const { return view_.at(row, column); }

 private:
  Indices view_;
  std::vector<char> copy_;
};

}  // namespace multikv
