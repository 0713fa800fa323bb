"""Cases of the ops that copy, zero and hash blocks of the caches of all layers."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Baseline, Case
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

LAYERS = 32  # each with a key and a value cache; blocks of 32 KiB
NUM_BLOCKS = {"cuda": (64, 256, 1024), "cpu": (32, 128)}
ORDERS = ("NHD", "HND")
PARTIAL_TOKENS = 5
_STEP, _FACTORS = -0x61C8864680B583EB, (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)  # in two's complement


def cases(device: torch.device) -> Iterator[Case]:
    copy = Baseline("index_copy_ of each cache", _copy, _copy_arguments)
    zero = Baseline("index_fill_ of each cache", _zero, _zero_arguments)
    for num_blocks in NUM_BLOCKS[device.type]:
        quick = num_blocks == NUM_BLOCKS[device.type][1]
        for make, expect, baselines in (
            (workloads.copy_blocks_layers, _expect_copy, (copy,)),
            (workloads.zero_blocks, _expect_zero, (zero,)),
            (workloads.checksum_blocks, _expect_checksum, ()),
        ):
            for order in ORDERS:
                yield Case.of(
                    make,
                    f"{order}/{LAYERS}x2x{num_blocks}",
                    expect,
                    baselines,
                    quick and order == "NHD",
                    num_layers=LAYERS,
                    num_blocks=num_blocks,
                    order=order,
                )
        yield Case.of(
            workloads.copy_blocks_layers,
            f"{PARTIAL_TOKENS}-tokens/{LAYERS}x2x{num_blocks}",
            _expect_copy,
            (copy,),
            num_layers=LAYERS,
            num_blocks=num_blocks,
            num_tokens=PARTIAL_TOKENS,
        )


def _copy_arguments(w: Workload) -> tuple[Any, ...]:
    caches, mapping, num_tokens = w.arguments
    tokens = caches[0].size(1) if num_tokens < 0 else num_tokens
    read, written = mapping.long().unbind(1)
    return [cache[:, :tokens] for cache in caches], read, written


def _copy(caches: list[Tensor], read: Tensor, written: Tensor) -> None:
    for cache in caches:
        cache.index_copy_(0, written, cache.index_select(0, read))


def _expect_copy(w: Workload) -> None:
    _copy(*_copy_arguments(w))


def _zero_arguments(w: Workload) -> tuple[Any, ...]:
    caches, blocks = w.arguments
    return caches, blocks.long()


def _zero(caches: list[Tensor], blocks: Tensor) -> None:
    for cache in caches:
        cache.index_fill_(0, blocks, 0)


def _expect_zero(w: Workload) -> None:
    _zero(*_zero_arguments(w))


def _mix(x: Tensor) -> Tensor:
    for shift, factor in zip((30, 27), _FACTORS, strict=True):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * factor
    return x ^ (x >> 31 & (1 << 33) - 1)


def _expect_checksum(w: Workload) -> None:
    """Hashes whole blocks, whose size is a multiple of 8 bytes."""
    caches, blocks, out = w.arguments
    for cache, hashes in zip(caches, out.unbind(1), strict=True):
        words = cache[blocks.long()].flatten(1).view(torch.int64)
        numbers = torch.arange(1, words.size(1) + 1, device=words.device)
        hashes.copy_(_mix(_mix(words ^ numbers * _STEP).sum(1) ^ words.size(1) * 8))
