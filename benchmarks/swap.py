"""Cases of swaps, which copy blocks between memories."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import multikv
from benchmarks.case import Baseline, Case
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

DIRECTIONS = {"cuda": ("d2h", "h2d", "d2d"), "cpu": ("h2h",)}
NUM_BLOCKS = {"4K": 2048, "32K": 2048, "256K": 2048, "2M": 256}  # by bytes per block; at most 512 MiB
LAYERS = 32
NUM_BLOCKS_OF_LAYERS = {"4K": 2048, "32K": 256, "256K": 35, "2M": 7}
QUICK = ("4K", "256K")


def cases(device: torch.device) -> Iterator[Case]:
    by_index, by_block = Baseline("index_copy_", _index, _indices), Baseline("copy_ of each block", _copy_each, _pairs)
    by_address = Baseline("swap_blocks_batch", multikv.swap_blocks_batch, _addresses)
    for direction in DIRECTIONS[device.type]:
        baseline = by_index if direction in ("d2d", "h2h") else by_block
        for (size, num_blocks), cold in itertools.product(NUM_BLOCKS.items(), (False, True)):
            if cold and device.type == "cpu":  # there, every call ends when its work is done
                continue
            yield Case.of(
                workloads.swap_blocks,
                f"{direction}/{size}/one-call" if cold else f"{direction}/{size}",
                _expect,
                (by_address,) if cold else (baseline,),
                size in QUICK,
                cold,
                direction=direction,
                block_bytes=_bytes(size),
                num_blocks=num_blocks,
            )
        for size, num_blocks in NUM_BLOCKS_OF_LAYERS.items():  # a baseline with a copy_ per block would take a second
            baselines = (Baseline("index_copy_ of each layer", _index_layers, _layers),) if baseline is by_index else ()
            yield Case.of(
                workloads.swap_blocks_layers,
                f"{direction}/{LAYERS}x{size}",
                _expect_layers,
                baselines,
                size in QUICK,
                direction=direction,
                block_bytes=_bytes(size),
                num_blocks=num_blocks,
                num_layers=LAYERS,
            )


def _bytes(size: str) -> int:
    return int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]


def _indices(w: Workload) -> tuple[Any, ...]:
    src, dst, _, mapping = w.arguments
    return dst, mapping[:, 1].to(dst.device), src, mapping[:, 0].to(src.device)


def _index(dst: Tensor, written: Tensor, src: Tensor, read: Tensor) -> None:
    dst.index_copy_(0, written, src.index_select(0, read).to(dst.device))


def _addresses(w: Workload) -> tuple[Any, ...]:
    src, dst, block_bytes, mapping = w.arguments
    addresses = (x.data_ptr() + mapping[:, i] * block_bytes for i, x in enumerate((src, dst)))
    return *addresses, torch.full((len(mapping),), block_bytes)


def _pairs(w: Workload) -> tuple[Any, ...]:
    src, dst, _, mapping = w.arguments
    return tuple((dst[written], src[read]) for read, written in mapping.tolist())


def _copy_each(*pairs: tuple[Tensor, Tensor]) -> None:
    for dst, src in pairs:
        dst.copy_(src, non_blocking=True)


def _expect(w: Workload) -> None:
    _index(*_indices(w))


def _layers(w: Workload) -> tuple[Any, ...]:
    src, dst, _, mapping = w.arguments
    return dst, mapping[:, 1].to(dst[0].device), src, mapping[:, 0].to(src[0].device)


def _index_layers(dst: list[Tensor], written: Tensor, src: list[Tensor], read: Tensor) -> None:
    for target, source in zip(dst, src, strict=True):
        _index(target, written, source, read)


def _expect_layers(w: Workload) -> None:
    _index_layers(*_layers(w))
