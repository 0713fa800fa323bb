// Registers the kernels of multikv's ops, and lists those of vLLM's ops. The kernels check the arguments, and then call
// the backend through run_on_backend (frontend/torch/register.h).
#include "ops.h"
#include "vllm_ops.h"

namespace multikv {

void implement_ops(Library& m) {
  for_each_op([&] < const auto& schema,
              auto make_params > (Op<schema, make_params>) { implement<schema, make_params>(m); });
}

}  // namespace multikv

namespace multikv::vllm {

const std::vector<BoxedKernel>& kernels() {
  static const std::vector<BoxedKernel> kKernels = {
      boxed_kernel<reshape_and_cache_flash, make_reshape_and_cache_flash_params>(),
      boxed_kernel<reshape_and_cache, make_reshape_and_cache_params>(),
      boxed_kernel<concat_and_cache_mla, make_concat_and_cache_mla_params>(),
      boxed_kernel<concat_and_cache_mla_grouped, make_concat_and_cache_mla_grouped_params>(),
      boxed_kernel<concat_mla_q, make_concat_mla_q_params>(),
      boxed_kernel<concat_and_cache_mla_rope_fused, make_concat_and_cache_mla_rope_fused_params>(),
      boxed_kernel<convert_fp8, make_convert_fp8_params>(),
      boxed_kernel<cp_gather_cache, make_cp_gather_cache_params>(),
      boxed_kernel<gather_and_maybe_dequant_cache, make_gather_and_maybe_dequant_cache_params>(),
      boxed_kernel<cp_gather_and_upconvert_fp8_kv_cache, make_cp_gather_and_upconvert_fp8_kv_cache_params>(),
      boxed_kernel<indexer_k_quant_and_cache, make_indexer_k_quant_and_cache_params>(),
      boxed_kernel<cp_gather_indexer_k_quant_cache, make_cp_gather_indexer_k_quant_cache_params>(),
      boxed_kernel<swap_blocks, make_swap_blocks_params>(),
      boxed_kernel<swap_blocks_batch, make_swap_blocks_batch_params>(),
  };
  return kKernels;
}

}  // namespace multikv::vllm
