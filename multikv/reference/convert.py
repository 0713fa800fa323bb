"""Converts whole caches to fp8 and back."""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import Family
from .formats import bits, dequantise, fp8_format, quantise

__all__ = ["convert_fp8"]


def convert_fp8(
    dst_cache: Tensor,
    src_cache: Tensor,
    scale: float,
    kv_cache_dtype: str,
    *,
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Writes quantise(src_cache, scale) if src_cache has a float dtype, else dequantise(src_cache, scale).

    The float dtypes are float32, float16 and bfloat16. Both tensors have the same shape. The scale is first rounded to
    float32. Dequantised values are rounded once, to the dtype of dst_cache.
    """
    to_fp8 = src_cache.dtype in (torch.float32, torch.float16, torch.bfloat16)
    fp8_dtype = dst_cache.dtype if to_fp8 else src_cache.dtype
    format = fp8_format(kv_cache_dtype, fp8_dtype, e4m3_of_bytes, Family.CONVERT)
    assert format is not None  # the family accepts no float format
    factor = torch.tensor(scale, dtype=torch.float64).float()
    if to_fp8:
        bits(dst_cache).copy_(quantise(src_cache, factor, format))
    else:
        dst_cache.copy_(dequantise(bits(src_cache), factor, format).to(dst_cache.dtype))
