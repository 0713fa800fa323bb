"""Workloads of the conversion of whole caches to fp8 and back."""

import torch

from . import values
from .case import Case
from .workload import Workload

__all__ = ["convert_fp8"]


def convert_fp8(
    device: torch.device,
    num_elements: int,
    to_fp8: bool = True,
    kv_cache_dtype: str = "fp8_e4m3",
    dtype: torch.dtype = torch.bfloat16,
    scale: float = 0.037,
) -> Workload:
    """Converts finite values to finite values."""
    shape, fp8 = (num_elements,), values.CACHE_DTYPES[kv_cache_dtype]
    if to_fp8:
        src, dst = values.normal(shape, device).to(dtype), values.bits(shape, fp8, device)
    else:
        src, dst = values.finite_fp8(shape, fp8, device), values.bits(shape, dtype, device)
    return Workload(
        "convert_fp8",
        (dst, src, scale, kv_cache_dtype),
        written=(0,),
        num_bytes=num_elements * (src.element_size() + dst.element_size()),
    )


_SMALL, _LARGE = {"num_elements": 1000}, {"num_elements": 1 << 22}
CASES = [
    Case("bfloat16 to fp8_e4m3, 4 Mi", convert_fp8, _SMALL | {"to_fp8": True}, _LARGE | {"to_fp8": True}),
    Case("fp8_e4m3 to bfloat16, 4 Mi", convert_fp8, _SMALL | {"to_fp8": False}, _LARGE | {"to_fp8": False}),
]
