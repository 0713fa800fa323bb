"""Keys and values into the cache."""

import torch

from . import values
from .workload import Workload


def reshape_and_cache_flash(device: torch.device, num_tokens: int, kv_cache_dtype: str = "bfloat16",
                            layout: str = "NHD", num_heads: int = 8, head_size: int = 128,
                            block_size: int = 16) -> Workload:
    """bfloat16 keys and values; the cache's layout is NHD or HND."""
    cache_dtype = values.CACHE_DTYPES[kv_cache_dtype]
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    if layout == "NHD":
        caches = [values.bits((num_blocks, block_size, num_heads, head_size), cache_dtype, device) for _ in "kv"]
    else:
        caches = [values.bits((num_blocks, num_heads, block_size, head_size), cache_dtype, device).transpose(1, 2)
                  for _ in "kv"]
    return _workload("reshape_and_cache_flash", num_heads, head_size, caches, slots, kv_cache_dtype)


def reshape_and_cache(device: torch.device, num_tokens: int, kv_cache_dtype: str = "bfloat16",
                      interleaved_v: bool = False, num_heads: int = 8, head_size: int = 128,
                      block_size: int = 16) -> Workload:
    """bfloat16 keys and values into the packed layouts, in vectors of 16 bytes."""
    cache_dtype = values.CACHE_DTYPES[kv_cache_dtype]
    num_blocks, slots = values.slots(num_tokens, block_size, device)
    x = 16 // cache_dtype.itemsize
    key_shape = (num_blocks, num_heads, head_size // x, block_size, x)
    value_shape = ((num_blocks, num_heads, block_size // x, head_size, x) if interleaved_v else
                   (num_blocks, num_heads, head_size, block_size))
    caches = [values.bits(shape, cache_dtype, device) for shape in (key_shape, value_shape)]
    return _workload("reshape_and_cache", num_heads, head_size, caches, slots, kv_cache_dtype, interleaved_v)


def _workload(op: str, num_heads: int, head_size: int, caches: list[torch.Tensor], slots: torch.Tensor,
              kv_cache_dtype: str, *options: bool) -> Workload:
    key, value = (values.normal((len(slots), num_heads, head_size), slots.device) for _ in "kv")
    k_scale, v_scale = (values.scales(slots.device, scale) for scale in (0.037, 0.051))
    num_bytes = 2 * key.numel() * (key.element_size() + caches[0].element_size())
    return Workload(op, (key, value, *caches, slots, kv_cache_dtype, k_scale, v_scale, *options), written=(2, 3),
                    num_bytes=num_bytes)
