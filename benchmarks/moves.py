"""Cases of moves of tokens: between caches and staging memory, between caches, and within a cache."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.case import Baseline, Case
from multikv.demo import cases as workloads
from multikv.demo.cases import Workload

# (blocks, layers) of pack_layers and unpack_layers. A CPU runs those within its limit of bytes.
SIZES = ((256, 4), (2048, 32))
QUICK_SIZES = ((256, 4),)
LAYOUTS = {"NHD-to-HND-64": {"layout": "heads", "row_tokens": 64}, "same-order": {"layout": "planes", "row_tokens": 16}}
PIECES = {"num_heads": 1, "layout": "planes", "row_tokens": 16}  # a block of a plane has 4 KiB
TOKENS = {"2K": (8192, 8), "256B": (16384, 1)}  # by bytes of a token: tokens, heads of 256 bytes
PLANES = (4, 64)
OVERLAPPING = (8, 256, 4096)
BATCHES = ((1, 4096), (16, 2048))


def cases(device: torch.device) -> Iterator[Case]:
    within = "d2d" if device.type == "cuda" else "h2h"
    for num_blocks, num_layers in SIZES:
        size = f"{num_layers}x2x{num_blocks}"
        at = {"num_blocks": num_blocks, "num_layers": num_layers}
        quick = (num_blocks, num_layers) in QUICK_SIZES
        for name, layout in LAYOUTS.items():
            yield from _staged(f"{within}/{name}/{size}", quick, within, within, **at, **layout)
        if device.type == "cuda":
            yield from _staged(f"host/4K-pieces/{size}", quick, "d2h", "h2d", **at, **PIECES)
    yield from _moves()
    for batch_size, length in BATCHES:
        yield Case.of(
            workloads.compact_cache,
            f"half/{batch_size}x{length}",
            _compact,
            (Baseline("index, index_put_", _compact_planes, lambda w: w.arguments),),
            quick=True,
            batch_size=batch_size,
            length=length,
        )


def _staged(name: str, quick: bool, packs: str, unpacks: str, **options: Any) -> Iterator[Case]:
    # The copies of baselines between the devices of a swap would take seconds.
    pack = (Baseline("index, copy_", _pack_planes, lambda w: w.arguments),) if packs != "d2h" else ()
    unpack = (Baseline("index_put_", _unpack_planes, lambda w: w.arguments),) if packs != "d2h" else ()
    yield Case.of(workloads.pack_layers, name, _pack, pack, quick, direction=packs, **options)
    yield Case.of(workloads.unpack_layers, name, _unpack, unpack, quick, direction=unpacks, **options)


def _moves() -> Iterator[Case]:
    baselines = (Baseline("index, index_copy_", _move_planes, lambda w: w.arguments[:4]),)
    for name, (num_tokens, num_heads) in TOKENS.items():
        for num_planes in PLANES:
            yield Case.of(
                workloads.move_tokens,
                f"{name}/{num_planes}x{num_tokens}",
                _move,
                baselines,
                num_planes == PLANES[0],
                num_tokens=num_tokens,
                num_planes=num_planes,
                num_heads=num_heads,
            )
    for num_tokens in OVERLAPPING:
        yield Case.of(
            workloads.move_tokens,
            f"overlap/64x{num_tokens}",
            _move,
            baselines,
            num_tokens == OVERLAPPING[0],
            num_tokens=num_tokens,
            num_planes=64,
            overlap=True,
        )


def _pack_planes(caches: list[Tensor], block_ids: Tensor, staging: Tensor) -> None:
    ids = block_ids.to(caches[0].device)
    for p, cache in enumerate(caches):
        plane = staging[:, :, p]
        plane.copy_(cache[ids].view(plane.shape))


def _unpack_planes(staging: Tensor, caches: list[Tensor], block_ids: Tensor) -> None:
    ids = block_ids.to(caches[0].device)
    for p, cache in enumerate(caches):
        cache[ids] = staging[:, :, p].to(cache.device).reshape(len(ids), *cache.shape[1:])


def _move_planes(src: list[Tensor], dst: list[Tensor], reads: Tensor, writes: Tensor) -> None:
    for source, target in zip(src, dst, strict=True):
        target.index_copy_(0, writes, source[reads])


def _compact_planes(caches: list[Tensor], block_table: Tensor, keep: Tensor, keep_offsets: Tensor) -> None:
    block_size, batch_size = caches[0].size(1), block_table.size(0)
    table, kept = block_table.long(), keep.view(batch_size, -1)
    front = torch.arange(kept.size(1), device=keep.device).expand_as(kept)
    read, written = (
        (table.gather(1, position // block_size) * block_size + position % block_size).flatten()
        for position in (kept, front)
    )
    for cache in caches:
        slots = cache.flatten(0, 1)
        slots.index_copy_(0, written, slots[read])


def _pack(w: Workload) -> None:
    _pack_planes(*w.arguments)


def _unpack(w: Workload) -> None:
    _unpack_planes(*w.arguments)


def _move(w: Workload) -> None:
    _move_planes(*w.arguments[:4])


def _compact(w: Workload) -> None:
    _compact_planes(*w.arguments)
