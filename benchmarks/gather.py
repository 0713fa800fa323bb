"""Cases of the ops that read sequences out of a paged cache."""

import functools
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.case import Baseline, Case
from multikv._cases import Workload, cp_gather_cache

BATCHES = ((1, 128), (1, 4096), (256, 128), (1, 131072), (256, 512))  # sequences x tokens of each
QUICK_BATCHES = ((1, 128), (1, 4096), (256, 128))
COMPILED_BATCHES = ((1, 128), (1, 131072))
ENTRY_SIZE, BLOCK_SIZE = 576, 64
DTYPES = {"bf16": torch.bfloat16, "fp8": torch.uint8}


def cases() -> Iterator[Case]:
    for dtype_name, dtype in DTYPES.items():
        for batch in BATCHES:
            yield _case(dtype_name, dtype, *batch)


def _case(dtype_name: str, dtype: torch.dtype, batch_size: int, length: int) -> Case:
    baselines = [
        Baseline("index_select blocks", _select, _blocks),
        Baseline("index_select rows", _select, _rows),
    ]
    if (batch_size, length) in COMPILED_BATCHES:
        baselines.append(Baseline("torch.compile", _index, _rows, compiled=True))
    return Case(
        op="cp_gather_cache",
        name=f"{dtype_name}/{batch_size}x{length}",
        make=functools.partial(cp_gather_cache, batch_size=batch_size, length=length, dtype=dtype,
                               entry_size=ENTRY_SIZE, block_size=BLOCK_SIZE),
        expect=_expect,
        baselines=tuple(baselines),
        num_bytes=2 * batch_size * length * ENTRY_SIZE * dtype.itemsize,
        quick=(batch_size, length) in QUICK_BATCHES,
    )


def _select(dst: torch.Tensor, src: torch.Tensor, index: torch.Tensor) -> None:
    torch.index_select(src, 0, index, out=dst)


def _index(dst: torch.Tensor, src: torch.Tensor, index: torch.Tensor) -> None:
    dst.copy_(src[index])


def _rows(w: Workload) -> tuple[Any, ...]:
    src_cache, dst, *_ = w.arguments
    return dst, src_cache.flatten(0, 1), _slots(w)


def _blocks(w: Workload) -> tuple[Any, ...]:
    """Whole blocks: possible here because every sequence fills its last one."""
    src_cache, dst, block_table, *_ = w.arguments
    return dst.view(-1, *src_cache.shape[1:]), src_cache, block_table.flatten().long()


def _slots(w: Workload) -> torch.Tensor:
    src_cache, dst, block_table, *_ = w.arguments
    position = torch.arange(dst.size(0) // block_table.size(0), device=dst.device)
    block = block_table.long()[:, position // src_cache.size(1)]
    return (block * src_cache.size(1) + position % src_cache.size(1)).flatten()


def _expect(w: Workload) -> None:
    src_cache, dst, *_ = w.arguments
    dst.view(torch.uint8)[:] = src_cache.view(torch.uint8).flatten(0, 1)[_slots(w)]
