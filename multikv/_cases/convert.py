"""A whole cache to fp8 and back."""

import torch

from . import values
from .workload import Workload


def convert_fp8(device: torch.device, num_elements: int, to_fp8: bool = True, kv_cache_dtype: str = "fp8_e4m3",
                dtype: torch.dtype = torch.bfloat16, scale: float = 0.037) -> Workload:
    """The values are such that no result is infinite or NaN."""
    shape, fp8 = (num_elements,), values.CACHE_DTYPES[kv_cache_dtype]
    if to_fp8:
        src, dst = values.normal(shape, device).to(dtype), values.bits(shape, fp8, device)
    else:
        src, dst = values.finite_fp8(shape, fp8, device), values.bits(shape, dtype, device)
    return Workload("convert_fp8", (dst, src, scale, kv_cache_dtype), written=(0,),
                    num_bytes=num_elements * (src.element_size() + dst.element_size()))
