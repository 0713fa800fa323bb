// THE schema. Every op has one line that states it and one line that implements it, for all backends.
// What each op does, argument by argument: multikv/ops.py.
#pragma once

#include "frontend/frontend.h"
#include "frontend/register.h"

namespace multikv {

namespace schema {

// Writes each token's key and value into its slot of a paged cache.
inline constexpr char reshape_and_cache_flash[] =
    "reshape_and_cache_flash(Tensor key, Tensor value, Tensor(a!) key_cache, Tensor(b!) value_cache, "
    "Tensor slot_mapping, str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()";

// Copies the cache entries of sequences, block by block, into consecutive rows.
inline constexpr char cp_gather_cache[] =
    "cp_gather_cache(Tensor src_cache, Tensor(a!) dst, Tensor block_table, Tensor cu_seq_lens, "
    "int batch_size, Tensor? seq_starts=None) -> ()";

}  // namespace schema

inline void define_ops(Library& m) {
  m.def(schema::reshape_and_cache_flash);
  m.def(schema::cp_gather_cache);
}

template <class Backend>
void implement_ops(Library& m) {
  implement<Backend, schema::reshape_and_cache_flash, make_reshape_and_cache_flash_params>(m);
  implement<Backend, schema::cp_gather_cache, make_cp_gather_cache_params>(m);
}

}  // namespace multikv
