"""Every op in plain PyTorch: slow, obvious, and what all backends are tested against, byte for byte.

The functions have the signatures of the ops, write into the tensors they are given, and take tensors of any strides on
any device (they compute on the CPU). They assume valid arguments; only indices are checked: `bad_indices="raise"` is
what a CPU does (IndexError before anything is written), `bad_indices="skip"` what a GPU does.

Letters in shapes: T tokens, H heads, D head size, N blocks, B block size, S sequences. slot = block * B + offset.
"""

from .convert import convert_fp8
from .formats import FP8_FORMATS, Fp8Format, decode_fp8, dequantise, encode_fp8, fp8_format, quantise
from .gather import cp_gather_and_upconvert_fp8_kv_cache, cp_gather_cache, gather_and_maybe_dequant_cache
from .indexer import cp_gather_indexer_k_quant_cache, indexer_k_quant_and_cache
from .mla import concat_and_cache_mla, concat_and_cache_mla_grouped, concat_and_cache_mla_rope_fused, concat_mla_q
from .reshape_and_cache import reshape_and_cache, reshape_and_cache_flash
from .swap import swap_blocks, swap_blocks_batch, swap_blocks_layers

__all__ = [
    "FP8_FORMATS",
    "Fp8Format",
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "concat_mla_q",
    "convert_fp8",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "decode_fp8",
    "dequantise",
    "encode_fp8",
    "fp8_format",
    "gather_and_maybe_dequant_cache",
    "indexer_k_quant_and_cache",
    "quantise",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
    "swap_blocks_batch",
    "swap_blocks_layers",
]
