"""KV-cache operations of LLM inference: one API and the same bytes on CUDA, ROCm and CPU.

Importing finds out which host this is and loads the libraries that serve it; `multikv.platforms.report()` tells.
The ops are also `torch.ops.multikv.<name>`.
"""

from importlib.metadata import PackageNotFoundError, version

from . import platforms

platforms.load()

from . import _fake  # noqa: E402,F401  needs the schemas that load() registered
from .offload import calibrate_swaps, empty_pinned  # noqa: E402
from .ops import (  # noqa: E402
    concat_and_cache_mla,
    concat_and_cache_mla_grouped,
    concat_and_cache_mla_rope_fused,
    concat_mla_q,
    convert_fp8,
    cp_gather_and_upconvert_fp8_kv_cache,
    cp_gather_cache,
    cp_gather_indexer_k_quant_cache,
    gather_and_maybe_dequant_cache,
    indexer_k_quant_and_cache,
    reshape_and_cache,
    reshape_and_cache_flash,
    swap_blocks,
    swap_blocks_batch,
    swap_blocks_layers,
)

try:
    __version__ = version("multikv")
except PackageNotFoundError:  # a source tree on the path, not installed
    __version__ = "0+unknown"

__all__ = [
    "calibrate_swaps",
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "concat_mla_q",
    "convert_fp8",
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "gather_and_maybe_dequant_cache",
    "empty_pinned",
    "indexer_k_quant_and_cache",
    "platforms",
    "reshape_and_cache",
    "reshape_and_cache_flash",
    "swap_blocks",
    "swap_blocks_batch",
    "swap_blocks_layers",
]
