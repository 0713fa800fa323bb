// One make_<op>_params per op: every check of its arguments, then the plain struct for the backend.
// Their parameters follow the schema in ../ops.h, argument by argument; schema_check.h holds them to it.
#pragma once

#include <optional>

#include "call.h"

namespace multikv {

ReshapeAndCacheFlashParams make_reshape_and_cache_flash_params(
    Call& call, const Tensor& key, const Tensor& value, const MutableTensor& key_cache, const MutableTensor& value_cache,
    const Tensor& slot_mapping, const FormatName& kv_cache_dtype, const Tensor& k_scale, const Tensor& v_scale);

CpGatherCacheParams make_cp_gather_cache_params(
    Call& call, const Tensor& src_cache, const MutableTensor& dst, const Tensor& block_table, const Tensor& cu_seq_lens,
    int64_t batch_size, const std::optional<Tensor>& seq_starts);

}  // namespace multikv
