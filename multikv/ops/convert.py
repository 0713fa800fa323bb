"""Whole caches to fp8, or back."""

import torch
from torch import Tensor

_convert_fp8 = torch.ops.multikv.convert_fp8.default


def convert_fp8(dst_cache: Tensor, src_cache: Tensor, scale: float, kv_cache_dtype: str) -> None:
    """Converts floats to fp8, `quantise(x, scale)`, or fp8 to floats, `dequantise(q, scale)`, element by element.

    One side is fp8 (uint8 or a torch.float8 type), the other float32, float16 or bfloat16, which decides the direction.

    Args:
        dst_cache: any shape, written. Any strides, also of the innermost dimension; each element in a place of its own.
        src_cache: shape of dst_cache; any strides. Both are fastest where they are dense in the same order (after
            merging neighbours there may be up to 8 strided dimensions).
        scale: a number, which is rounded to float32.
        kv_cache_dtype: "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_e4m3fn", "fp8_e4m3fnuz" or "fp8_e5m2fnuz": the format of the
            side that is fp8; see the text of `multikv.ops`.

    Raises:
        RuntimeError: an argument of a wrong size, dtype, device, stride or format.
    """
    _convert_fp8(dst_cache, src_cache, scale, kv_cache_dtype)
