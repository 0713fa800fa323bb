"""Cases of the op that moves blocks between memories, beside one copy of as many bytes the same way."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Baseline, Case
from multikv import _cases
from multikv._cases import Workload

DIRECTIONS = {"cuda": ("d2h", "h2d", "d2d"), "cpu": ("h2h",)}
NUM_BLOCKS = {"4K": 2048, "32K": 2048, "256K": 2048, "2M": 512}  # by size: 1 GiB is enough
QUICK = ("4K", "256K")


def cases(device: torch.device) -> Iterator[Case]:
    by_index, by_block = Baseline("index_copy_", _index, _indices), Baseline("copy_ of each block", _copy_each, _pairs)
    for direction in DIRECTIONS[device.type]:
        baseline = by_index if direction in ("d2d", "h2h") else by_block
        for size, num_blocks in NUM_BLOCKS.items():
            block_bytes = int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
            yield Case.of(_cases.swap_blocks, f"{direction}/{size}", _expect, (baseline,), size in QUICK,
                          direction=direction, block_bytes=block_bytes, num_blocks=num_blocks)


def _indices(w: Workload) -> tuple[Any, ...]:
    src, dst, _, mapping = w.arguments
    return dst, mapping[:, 1].to(dst.device), src, mapping[:, 0].to(src.device)


def _index(dst: Tensor, written: Tensor, src: Tensor, read: Tensor) -> None:
    dst.index_copy_(0, written, src.index_select(0, read).to(dst.device))


def _pairs(w: Workload) -> tuple[Any, ...]:
    src, dst, _, mapping = w.arguments
    return tuple((dst[written], src[read]) for read, written in mapping.tolist())


def _copy_each(*pairs: tuple[Tensor, Tensor]) -> None:
    for dst, src in pairs:
        dst.copy_(src, non_blocking=True)


def _expect(w: Workload) -> None:
    _index(*_indices(w))
