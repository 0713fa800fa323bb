"""Cases that convert whole caches to fp8 and back."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks import numbers
from benchmarks.case import Baseline, Case
from multikv.demo import cases as workloads
from multikv.demo.cases import CACHE_DTYPES, Workload

ELEMENTS = (20, 25, 29)  # log2 of the number of elements
FORMATS = ("fp8_e4m3", "fp8_e5m2")


def cases(device: torch.device) -> Iterator[Case]:
    for kv_cache_dtype in FORMATS:
        for to_fp8 in (True, False):
            name = f"bf16-to-{kv_cache_dtype}" if to_fp8 else f"{kv_cache_dtype}-to-bf16"
            baseline = Baseline("div, copy_", _divide, _arguments) if to_fp8 else Baseline("mul", _multiply, _arguments)
            for power in ELEMENTS:
                yield Case.of(
                    workloads.convert_fp8,
                    f"{name}/2^{power}",
                    _expect,
                    (baseline,),
                    power != 20,
                    num_elements=1 << power,
                    to_fp8=to_fp8,
                    kv_cache_dtype=kv_cache_dtype,
                )


def _arguments(w: Workload) -> tuple[Any, ...]:
    dst, src, scale, _ = w.arguments
    return dst, src, torch.tensor([scale], device=dst.device)


def _divide(dst: Tensor, src: Tensor, scale: Tensor) -> None:
    dst.copy_(src / scale)


def _multiply(dst: Tensor, src: Tensor, scale: Tensor) -> None:
    torch.mul(src.to(torch.float32), scale, out=dst)


def _expect(w: Workload) -> None:
    dst, src, scale = _arguments(w)
    fp8 = CACHE_DTYPES[w.arguments[3]]
    # Intermediate results take several times the memory of the tensors, so the tensors are converted in parts.
    for out, x in zip(dst.split(1 << 26), src.split(1 << 26), strict=True):
        if dst.dtype == fp8:
            out.view(torch.uint8).copy_(numbers.encode(x / scale, fp8))
        else:
            out.copy_(numbers.decode(x.view(torch.uint8), fp8) * scale)
