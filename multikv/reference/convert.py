"""A cache from floats to fp8, or back."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import bits, dequantise, fp8_format, quantise


def convert_fp8(
    dst_cache: Tensor,
    src_cache: Tensor,
    scale: float,
    kv_cache_dtype: str,
    *,
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Of equal shapes: quantise(src_cache, scale) if that has floats of 16 or 32 bits, or else float(code) * scale.

    The scale is rounded to float32 first, and the product once to the dtype of dst_cache.
    """
    factor = torch.tensor(scale, dtype=torch.float64).float()
    if src_cache.dtype in (torch.float32, torch.float16, torch.bfloat16):
        format = fp8_format(kv_cache_dtype, dst_cache.dtype, e4m3_of_bytes)
        bits(dst_cache).copy_(quantise(src_cache, factor, format))
    else:
        format = fp8_format(kv_cache_dtype, src_cache.dtype, e4m3_of_bytes)
        dst_cache.copy_(dequantise(bits(src_cache), factor, format).to(dst_cache.dtype))
