// The checks that concat_and_cache_mla and concat_and_cache_mla_rope_fused have in common.
#pragma once

#include "frontend/check/call.h"
#include "frontend/torch/format_name.h"
#include "params/mla_params.h"

namespace multikv {

struct MlaWriteArguments {
  const Tensor &kv_c, &k_pe;
  const MutableTensor& kv_cache;
  const Tensor& slot_mapping;
  const FormatName& kv_cache_dtype;
  std::string_view scale_name;
  const Tensor& scale;
  bool skip_scale = false;
};

// Checks a write of MLA entries, but not the values of the slots, and returns its params without the addresses of kv_c,
// k_pe and kv_cache. The caller has checked the devices and dimensions of kv_c and k_pe.
ConcatAndCacheMlaParams make_mla_write(Call& call, const MlaWriteArguments& arguments);

}  // namespace multikv
