// Checks of sizes and strides, and the layouts that views hold.
#pragma once

#include "core/cache_view.h"
#include "core/rows.h"
#include "frontend/check/call.h"

namespace multikv {

// Sizes and strides of an empty tensor may be absurd: near 2^62 in one dimension and 0 in another. What is computed
// from them before the call is found to have nothing to do wraps around.
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
// Fails unless a dimension has this size, or at least this size. `of` says in the error's text what the size is.
void check_size(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                std::string_view of);
void check_min_size(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                    std::string_view of);
// Checks an argument that is a number.
void check_at_least(const Call& call, std::string_view argument, int64_t value, int64_t minimum);

// The innermost dimension has stride 1, or at most one element.
void check_inner_stride(const Call& call, std::string_view argument, const Tensor& tensor);
// No dimension of more than one element has stride 0, as expand() makes it.
void check_not_expanded(const Call& call, std::string_view argument, const Tensor& tensor);
// Checks both the inner stride and expansion.
void check_writable(const Call& call, std::string_view argument, const Tensor& tensor);
inline constexpr std::string_view kWithoutOverlaps = "a writable tensor without overlapping elements";

// The addresses of tensors, which must be multiples of the element size: a GPU can read no others. A call takes the
// addresses of tensors after all checks, because asking for the address of a copy-on-write tensor that is written
// makes torch copy it. Views hold char* whether or not the op writes.
char* data(const Call& call, std::string_view argument, const Tensor& tensor);
char* mutable_data(const Call& call, std::string_view argument, const MutableTensor& tensor);
// The address at which the device of the call reads a tensor on the CPU; for a GPU it must be pinned.
char* host_data(const Call& call, std::string_view argument, const Tensor& tensor);

// The functions below return views without addresses.

// A tensor whose tokens are in dimension `token_dim`, and whose rows are in the last dimension.
TokenRows token_rows(const Tensor& tensor, int64_t token_dim = 0);
// A tensor [tokens, heads, head].
TokenHeads token_heads(const Tensor& tensor);
// The blocks of a cache [blocks, ...] whose block size is the size of dimension `block_size_dim`; it must be at
// least 1.
Blocks blocks_of(const Call& call, std::string_view argument, const Tensor& cache, int64_t block_size_dim = 1);
// A cache [blocks, block_size, entry].
EntryCache entry_cache(const Call& call, std::string_view argument, const Tensor& cache);

}  // namespace multikv
