#include "frontend/check/shapes.h"

#include <algorithm>

namespace multikv {

namespace {

// Fails if the storage ends before the tensor does.
void check_storage(const Call& call, std::string_view argument, const Tensor& tensor) {
  const int64_t needed = tensor.needed_bytes();
  if (needed == 0) return;
  const int64_t available = tensor.storage_bytes();
  if (available >= needed) return;
  call.fail(argument, join({"a storage with ", text(needed), " bytes from the first element on"}),
            count_text(std::max<int64_t>(available, 0), "byte"));
}

char* checked_address(const Call& call, std::string_view argument, const Tensor& tensor, const void* address) {
  const auto remainder = reinterpret_cast<uintptr_t>(address) & (tensor.element_bytes() - 1);  // a power of two
  if (remainder != 0) {
    call.fail(argument,
              join({"an address that is a multiple of ", text(tensor.element_bytes()), " (bytes per element)"}),
              "a remainder of " + text(remainder));
  }
  return static_cast<char*>(const_cast<void*>(address));
}

}  // namespace

void fail_dim(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim) {
  call.fail(argument, count_text(dim, "dimension"), shape_text(tensor));
}

void fail_size(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
               std::string_view of) {
  call.fail(argument, join({"size ", text(size), " (", of, ") in dimension ", text(dim)}), shape_text(tensor));
}

void fail_min_size(const Call& call, std::string_view argument, const Tensor& tensor, int64_t dim, int64_t size,
                   std::string_view of) {
  if (dim == 0) {
    call.fail(argument, join({"at least ", count_text(size, "row"), " (", of, ")"}), shape_text(tensor));
  }
  call.fail(argument, join({"at least ", text(size), " (", of, ") in dimension ", text(dim)}), shape_text(tensor));
}

void check_at_least(const Call& call, std::string_view argument, int64_t value, int64_t minimum) {
  if (value < minimum) call.fail(argument, "at least " + text(minimum), text(value));
}

void check_inner_stride(const Call& call, std::string_view argument, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  if (last < 0 || tensor.size(last) <= 1 || tensor.stride(last) == 1) return;
  call.fail(argument, "stride 1 in the innermost dimension", "stride " + text(tensor.stride(last)));
}

void check_not_expanded(const Call& call, std::string_view argument, const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) == 0) {
      call.fail(argument, kWithoutOverlaps, "stride 0 in dimension " + text(i));
    }
  }
}

void check_writable(const Call& call, std::string_view argument, const Tensor& tensor) {
  check_inner_stride(call, argument, tensor);
  check_not_expanded(call, argument, tensor);
}

char* data(const Call& call, std::string_view argument, const Tensor& tensor) {
  check_storage(call, argument, tensor);
  return checked_address(call, argument, tensor, tensor.data());
}

char* mutable_data(const Call& call, std::string_view argument, const MutableTensor& tensor) {
  check_storage(call, argument, tensor);
  return checked_address(call, argument, tensor, tensor.mutable_data());
}

char* host_data(const Call& call, std::string_view argument, const Tensor& tensor) {
  char* host = data(call, argument, tensor);
  if (call.backend().device_view == nullptr) return host;
  const void* device = call.backend().device_view(host, call.device_index());
  if (device == nullptr) call.fail(argument, "pinned memory", "pageable memory");
  return static_cast<char*>(const_cast<void*>(device));
}

TokenRows token_rows(const Tensor& tensor, int64_t token_dim) {
  return {nullptr, stride_bytes(tensor, token_dim), size_bytes(tensor, tensor.dim() - 1)};
}

TokenHeads token_heads(const Tensor& tensor) {
  return {nullptr, stride_bytes(tensor, 0), stride_bytes(tensor, 1), size_bytes(tensor, 2)};
}

Blocks blocks_of(const Call& call, std::string_view argument, const Tensor& cache, int64_t block_size_dim) {
  const int64_t block_size = cache.size(block_size_dim);
  if (block_size == 0) call.fail(argument, "a block size of at least 1", shape_text(cache));
  return {cache.size(0), Divisor::of(block_size)};
}

EntryCache entry_cache(const Call& call, std::string_view argument, const Tensor& cache) {
  EntryCache view{};
  view.blocks = blocks_of(call, argument, cache);
  view.stride_block_bytes = stride_bytes(cache, 0);
  view.stride_slot_bytes = stride_bytes(cache, 1);
  return view;
}

}  // namespace multikv
