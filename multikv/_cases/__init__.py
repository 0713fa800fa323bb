"""Random inputs for each op, and the copies to compare with, for `python -m multikv` and the benchmarks.

One function per op, named like it, makes a Workload: fresh random values, blocks in random order, consecutive tokens
side by side in a block. On the device `meta` it costs nothing and tells how many bytes the op moves.
"""

from .convert import convert_fp8
from .gather import (cp_gather_and_upconvert_fp8_kv_cache, cp_gather_cache, cp_gather_indexer_k_quant_cache,
                     gather_and_maybe_dequant_cache)
from .indexer import indexer_k_quant_and_cache
from .mla import concat_and_cache_mla, concat_and_cache_mla_grouped, concat_and_cache_mla_rope_fused, concat_mla_q
from .reshape_and_cache import reshape_and_cache, reshape_and_cache_flash
from .swap import swap_blocks, swap_blocks_layers
from .values import CACHE_DTYPES
from .workload import (Workload, copy_calls, copy_description, device_name, last_level_cache_bytes, rotation,
                       same_bytes)

__all__ = [
    "CACHE_DTYPES",
    "Workload",
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "concat_mla_q",
    "convert_fp8",
    "copy_calls",
    "copy_description",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "device_name",
    "gather_and_maybe_dequant_cache",
    "indexer_k_quant_and_cache",
    "last_level_cache_bytes",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "rotation",
    "same_bytes",
    "swap_blocks",
    "swap_blocks_layers",
]
