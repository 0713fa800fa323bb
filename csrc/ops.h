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

}  // namespace schema

inline void define_ops(Library& m) {
  m.def(schema::reshape_and_cache_flash);
}

template <class Backend>
void implement_ops(Library& m) {
  implement<Backend, schema::reshape_and_cache_flash, make_reshape_and_cache_flash_params>(m);
}

}  // namespace multikv
