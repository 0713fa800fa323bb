"""The vectorised twin of multikv.reference: the same functions, in PyTorch's index operations instead of Python loops.

It is the oracle of large calls, for which the plain reference takes seconds. `unit/test_vectorised.py` holds the two
equal, on all 16-bit floats and on random calls of every op. Positions of a sequence are assumed to be below 2^62.
"""

from __future__ import annotations

from multikv.reference import concat_mla_q, convert_fp8, swap_blocks_batch
from tests.support.vectorised.gathers import (
    cp_gather_and_upconvert_fp8_kv_cache,
    cp_gather_cache,
    cp_gather_indexer_k_quant_cache,
    gather_and_maybe_dequant_cache,
)
from tests.support.vectorised.numbers import decode_fp8, encode_fp8
from tests.support.vectorised.swaps import swap_blocks, swap_blocks_layers
from tests.support.vectorised.writes import (
    concat_and_cache_mla,
    concat_and_cache_mla_grouped,
    concat_and_cache_mla_rope_fused,
    indexer_k_quant_and_cache,
    reshape_and_cache,
    reshape_and_cache_flash,
)

__all__ = [
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "concat_mla_q",
    "convert_fp8",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "decode_fp8",
    "encode_fp8",
    "gather_and_maybe_dequant_cache",
    "indexer_k_quant_and_cache",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
    "swap_blocks_batch",
    "swap_blocks_layers",
]
