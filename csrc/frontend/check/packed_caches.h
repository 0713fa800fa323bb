// Checks of caches in the packed layouts of the first PagedAttention (PackedCache in core/cache_view.h).
#pragma once

#include "core/cache_view.h"
#include "frontend/check/call.h"

namespace multikv {

// The heads that a packed cache stores. The texts say in error messages where the two sizes come from. The default
// texts are for sizes of the tensor `key`.
struct Heads {
  int64_t num_heads, head_size;
  std::string_view num_heads_of = "heads of key", head_size_of = "head size of key";
};

// set_packed_keys() and set_packed_values() check the shape of a cache, and set the vector size and the strides within
// a block. The caller has set `blocks` of the view.

// Checks a cache [blocks, heads, head_size / vector_size, block_size, vector_size].
void set_packed_keys(const Call& call, PackedCache& view, const Tensor& key_cache, const Heads& heads);
// Checks a cache [blocks, heads, head_size, block_size], or if it has five dimensions a cache [blocks, heads,
// block_size / vector_size, head_size, vector_size]. Without a dimension of vectors, one vector holds all slots of a
// block.
void set_packed_values(const Call& call, PackedCache& view, const Tensor& value_cache, const Heads& heads);

}  // namespace multikv
