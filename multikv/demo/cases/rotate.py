"""Workloads of cached keys that move to other positions."""

import torch

from . import values
from .case import Case
from .mla_rope import cos_sin
from .workload import Workload

__all__ = ["rotate_cached_keys"]

_NUM_POSITIONS = 4096


def rotate_cached_keys(
    device: torch.device,
    num_tokens: int,
    kv_cache_dtype: str = "bfloat16",
    is_neox: bool = True,
    packed: bool = False,
    num_heads: int = 8,
    head_size: int = 128,
    block_size: int = 16,
    table_dtype: torch.dtype = torch.float32,
) -> Workload:
    """Moves tokens by 100 positions. Every call moves them further.

    cos^2 + sin^2 is 1 except for the rounding of the table: to 24 bits if it is float32, to 8 bits if it is bfloat16.
    """
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    dtype = values.CACHE_DTYPES[kv_cache_dtype]
    shape: tuple[int, ...] = (num_blocks, block_size, num_heads, head_size)
    if packed:
        x = 16 // dtype.itemsize
        shape = (num_blocks, num_heads, head_size // x, block_size, x)
    key_cache = values.normal(shape, device) if dtype == torch.bfloat16 else values.finite_fp8(shape, dtype, device)
    old = torch.arange(num_tokens, device=device) % (_NUM_POSITIONS - 100)
    scale = None if dtype == torch.bfloat16 else values.scales(device, 0.037)
    return Workload(
        "rotate_cached_keys",
        (key_cache, slots, old, old + 100, cos_sin(head_size, device, table_dtype), is_neox, kv_cache_dtype, scale),
        written=(0,),
        num_bytes=2 * num_tokens * num_heads * head_size * dtype.itemsize,
    )


CASES = [Case.of_tokens(rotate_cached_keys, dtype, kv_cache_dtype=dtype) for dtype in ("bfloat16", "fp8_e4m3")]
