// Checks of sizes and strides, and the views that are made from them.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "frontend/check/call.h"

namespace multikv {

// Arithmetic that wraps around instead of overflowing, which would be undefined. An empty tensor may have a size or
// stride near 2^62 in one dimension and size 0 in another, and some sizes are computed before an op knows that the
// tensor is empty.
constexpr int64_t wrapping_sum(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}
constexpr int64_t wrapping_product(int64_t a, int64_t b) {
  return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
}
inline int64_t size_bytes(const Tensor& tensor, int64_t dim) {
  return wrapping_product(tensor.size(dim), tensor.element_bytes());
}
inline int64_t stride_bytes(const Tensor& tensor, int64_t dim) {
  return wrapping_product(tensor.stride(dim), tensor.element_bytes());
}

void check_dim(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim);
// Checks the device before the dimensions, because a None has no dimensions.
void check_device_and_dim(Call& call, std::string_view argument, const Tensor& tensor, int64_t dim);
// check_size() fails unless a dimension has exactly this size. check_min_size() fails if the dimension is smaller. `of`
// says what the size is, for the error message: "size 8 (heads of key)".
void check_size(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                std::string_view of);
void check_min_size(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                    std::string_view of);
// Fails if an argument that is a number is below `minimum`.
void check_at_least(const Call& call, std::string_view argument, int64_t value, int64_t minimum);

// Fails unless the innermost dimension has stride 1, or at most one element.
void check_inner_stride(const Call& call, std::string_view argument, const Tensor& tensor);
// Fails if a dimension of more than one element has stride 0, as after expand().
void check_not_expanded(const Call& call, std::string_view argument, const Tensor& tensor);
// Calls check_inner_stride() and check_not_expanded().
void check_writable(const Call& call, std::string_view argument, const Tensor& tensor);
inline constexpr std::string_view kWithoutOverlaps = "a writable tensor without overlapping elements";

// Return the address of a tensor. Fail if the tensor's storage ends before the tensor does, as after
// untyped_storage().resize_(). Fail also if the address is not a multiple of the element size, because a GPU cannot
// access unaligned elements. Ops call mutable_data() after the checks of shapes and index values, because it makes
// torch copy a copy-on-write tensor. Only the workspace of attention is taken earlier. data() returns char*, too,
// because views hold char* whether or not the op writes.
char* data(const Call& call, std::string_view argument, const Tensor& tensor);
char* mutable_data(const Call& call, std::string_view argument, const MutableTensor& tensor);
// Returns the address at which the device of the call reads a tensor on the CPU. For a GPU the tensor must be in pinned
// memory.
char* host_data(const Call& call, std::string_view argument, const Tensor& tensor);

// The functions below return views whose `data` is not set yet.

// The rows of a tensor [..., tokens, ..., row_size] whose tokens are in dimension `token_dim`.
TokenRows token_rows(const Tensor& tensor, int64_t token_dim = 0);
// The heads of a tensor [tokens, heads, head_size].
TokenHeads token_heads(const Tensor& tensor);
// The blocks of a cache [blocks, ...]. The block size, which is the size of dimension `block_size_dim`, must not be 0.
Blocks blocks_of(const Call& call, std::string_view argument, const Tensor& cache, int64_t block_size_dim = 1);
// The view of a cache [blocks, block_size, entry].
EntryCache entry_cache(const Call& call, std::string_view argument, const Tensor& cache);

}  // namespace multikv
