"""Conversion of whole caches to fp8 and back."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["convert_fp8"]

_convert_fp8 = explaining(torch.ops.multikv.convert_fp8.default)


def convert_fp8(dst_cache: Tensor, src_cache: Tensor, scale: float, kv_cache_dtype: str) -> None:
    """Converts floats to fp8 codes or fp8 codes to floats, element by element.

    One of the two tensors is fp8 (uint8 or a torch.float8 type), the other float32, float16 or bfloat16. The op
    computes `dst_cache = quantise(src_cache, scale)` if dst_cache is fp8, else
    `dst_cache = dequantise(src_cache, scale)`; see `multikv.ops`.

    Args:
        dst_cache: any shape, written. Any strides, the innermost included, as long as no two elements share memory.
        src_cache: the shape of dst_cache. Any strides. Conversion is fastest if both tensors are dense in the same
            order of dimensions. The op first merges dimensions that permute() and flatten() could merge without a copy,
            in the same way for both tensors. At most 8 dimensions may then remain besides one whose stride is 1 in both
            tensors.
        scale: a Python number, rounded to float32.
        kv_cache_dtype: "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_e4m3fn", "fp8_e4m3fnuz" or "fp8_e5m2fnuz": the format of
            the fp8 tensor.

    Raises:
        RuntimeError: an argument has a wrong size, dtype, device, stride or format.

    Example:
        >>> cache = torch.randn(64, 16, 8, 128, dtype=torch.bfloat16)
        >>> codes = torch.empty(cache.shape, dtype=torch.float8_e4m3fn)
        >>> multikv.convert_fp8(codes, cache, 0.02, "fp8_e4m3")
    """
    _convert_fp8(dst_cache, src_cache, scale, kv_cache_dtype)
