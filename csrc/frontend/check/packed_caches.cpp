#include "frontend/check/packed_caches.h"

#include "frontend/check/shapes.h"

namespace multikv {

namespace {

// A packed cache splits a dimension of size `whole` into dimension 2, the vectors, and dimension 4, the elements of a
// vector. Checks the sizes of these two dimensions, and returns the size of dimension 4.
Divisor vector_size(const Call& call, std::string_view argument, const Tensor& cache, int64_t whole,
                    std::string_view of) {
  const int64_t size = cache.size(4);
  if (size == 0 || whole % size != 0) {
    call.fail(argument, join({"a size in dimension 4 that divides ", text(whole), " (", of, ")"}), shape_text(cache));
  }
  check_size(call, argument, cache, 2, whole / size, [&] { return join({of, " / size of dimension 4"}); });
  return Divisor::of(size);
}

}  // namespace

void set_packed_keys(const Call& call, PackedCache& view, const Tensor& key_cache, const Heads& heads) {
  check_size(call, "key_cache", key_cache, 1, heads.num_heads, heads.num_heads_of);
  view.vector_size = vector_size(call, "key_cache", key_cache, heads.head_size, heads.head_size_of);
  view.stride_head_bytes = stride_bytes(key_cache, 1);
  view.stride_vector_bytes = stride_bytes(key_cache, 2);
  view.stride_row_bytes = stride_bytes(key_cache, 3);
}

void set_packed_values(const Call& call, PackedCache& view, const Tensor& value_cache, const Heads& heads) {
  const bool is_interleaved = value_cache.dim() == 5;
  const int64_t block_size = view.blocks.block_size.signed_value();
  check_size(call, "value_cache", value_cache, 1, heads.num_heads, heads.num_heads_of);
  view.stride_head_bytes = stride_bytes(value_cache, 1);
  if (is_interleaved) {
    view.vector_size = vector_size(call, "value_cache", value_cache, block_size, "block size of key_cache");
    view.stride_vector_bytes = stride_bytes(value_cache, 2);
    view.stride_row_bytes = stride_bytes(value_cache, 3);
  } else {
    check_size(call, "value_cache", value_cache, 3, block_size, "block size of key_cache");
    view.vector_size = view.blocks.block_size;
    view.stride_row_bytes = stride_bytes(value_cache, 2);
  }
  check_size(call, "value_cache", value_cache, is_interleaved ? 3 : 2, heads.head_size, heads.head_size_of);
}

}  // namespace multikv
