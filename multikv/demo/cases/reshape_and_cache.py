"""Workloads that write keys and values into a paged cache."""

import torch
from torch import Tensor

from . import values
from .case import Case
from .workload import Workload

__all__ = ["reshape_and_cache", "reshape_and_cache_flash"]


def reshape_and_cache_flash(
    device: torch.device,
    num_tokens: int,
    kv_cache_dtype: str = "bfloat16",
    layout: str = "NHD",
    num_heads: int = 8,
    head_size: int = 128,
    block_size: int = 16,
) -> Workload:
    """Writes bfloat16 keys and values into caches of the layout NHD or HND."""
    cache_dtype = values.CACHE_DTYPES[kv_cache_dtype]
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    is_hnd = layout == "HND"
    inner = (num_heads, block_size) if is_hnd else (block_size, num_heads)
    caches = [values.bits((num_blocks, *inner, head_size), cache_dtype, device) for _ in "kv"]
    if is_hnd:
        caches = [cache.transpose(1, 2) for cache in caches]
    return _workload("reshape_and_cache_flash", num_heads, head_size, caches, slots, kv_cache_dtype)


def reshape_and_cache(
    device: torch.device,
    num_tokens: int,
    kv_cache_dtype: str = "bfloat16",
    interleaved_v: bool = False,
    num_heads: int = 8,
    head_size: int = 128,
    block_size: int = 16,
) -> Workload:
    """Writes bfloat16 keys and values into caches of the packed layouts, with vectors of 16 bytes."""
    cache_dtype = values.CACHE_DTYPES[kv_cache_dtype]
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    x = 16 // cache_dtype.itemsize
    key_shape = (num_blocks, num_heads, head_size // x, block_size, x)
    value_shape: tuple[int, ...] = (num_blocks, num_heads, head_size, block_size)
    if interleaved_v:
        value_shape = (num_blocks, num_heads, block_size // x, head_size, x)
    caches = [values.bits(shape, cache_dtype, device) for shape in (key_shape, value_shape)]
    return _workload("reshape_and_cache", num_heads, head_size, caches, slots, kv_cache_dtype, interleaved_v)


def _workload(
    op: str,
    num_heads: int,
    head_size: int,
    caches: list[Tensor],
    slots: Tensor,
    kv_cache_dtype: str,
    *options: bool,
) -> Workload:
    key, value = (values.normal((len(slots), num_heads, head_size), slots.device) for _ in "kv")
    k_scale, v_scale = (values.scales(slots.device, scale) for scale in (0.037, 0.051))
    return Workload(
        op,
        (key, value, *caches, slots, kv_cache_dtype, k_scale, v_scale, *options),
        written=(2, 3),
        num_bytes=2 * key.numel() * (key.element_size() + caches[0].element_size()),
    )


CASES = [
    Case.of_tokens(reshape_and_cache_flash, "NHD bfloat16"),
    Case.of_tokens(reshape_and_cache_flash, "HND fp8_e4m3", kv_cache_dtype="fp8_e4m3", layout="HND"),
    Case.of_tokens(reshape_and_cache, "bfloat16"),
    Case.of_tokens(reshape_and_cache, "interleaved V, fp8_e4m3", kv_cache_dtype="fp8_e4m3", interleaved_v=True),
]
