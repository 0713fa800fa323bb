"""Workloads of moves of tokens: between caches and staging memory, between caches, and within a cache."""

import torch
from torch import Tensor

from . import values
from .case import Case
from .workload import Workload

__all__ = ["compact_cache", "move_tokens", "pack_layers", "unpack_layers"]

# Each tuple lists the dimensions of staging, [rows, tokens of a row, planes, heads, head_size], in the order that they
# have in memory.
_LAYOUTS = {
    "tokens": (0, 1, 2, 3, 4),  # all planes of a token are neighbours, as in SGLang's page_first
    "planes": (0, 2, 1, 3, 4),  # the tokens of a row are neighbours, plane by plane
    "heads": (0, 2, 3, 1, 4),  # the tokens of a row are neighbours, head by head (HND)
}


def pack_layers(
    device: torch.device,
    num_blocks: int,
    num_layers: int,
    direction: str = "d2d",
    layout: str = "heads",
    row_tokens: int = 64,
    block_size: int = 16,
    num_heads: int = 8,
    head_size: int = 128,
) -> Workload:
    """Packs num_blocks blocks of the K and V of each layer, in random order.

    The direction is "d2d", "d2h" or "h2h" (on a CPU), where d is the device and h is the host. Staging is in pinned
    memory if it is on the host of a GPU. A row of staging has row_tokens tokens, in one of _LAYOUTS.
    """
    shape = (num_blocks + values.SPARE_BLOCKS, block_size, num_heads, head_size)
    caches = [values.bits(shape, torch.bfloat16, device) for _ in range(2 * num_layers)]
    block_ids = torch.randperm(shape[0], device=device)[:num_blocks]
    order = _LAYOUTS[layout]
    sizes = (-(-num_blocks * block_size // row_tokens), row_tokens, len(caches), num_heads, head_size)
    dense = values.bits([sizes[i] for i in order], torch.bfloat16, device)
    host = torch.device("cpu")
    staging = values.moved(dense, host if direction[-1] == "h" else device).permute([order.index(i) for i in range(5)])
    return Workload(
        "pack_layers",
        (caches, block_ids, staging),
        written=(2,),
        num_bytes=2 * num_blocks * block_size * len(caches) * num_heads * head_size * 2,
        route=(device, host) if direction == "d2h" else None,
    )


def unpack_layers(
    device: torch.device, num_blocks: int, num_layers: int, direction: str = "d2d", **options: object
) -> Workload:
    """Unpacks what pack_layers packs; the direction is "d2d", "h2d" or "h2h"."""
    packed = pack_layers(device, num_blocks, num_layers, direction[::-1], **options)  # type: ignore[arg-type]
    caches, block_ids, staging = packed.arguments
    route = None if packed.route is None else packed.route[::-1]
    return Workload(
        "unpack_layers", (staging, caches, block_ids), written=(1,), num_bytes=packed.num_bytes, route=route
    )


def move_tokens(
    device: torch.device,
    num_tokens: int,
    num_planes: int,
    num_heads: int = 8,
    head_size: int = 128,
    overlap: bool = False,
) -> Workload:
    """Moves num_tokens tokens from random slots to random slots: of another pool, or, with overlap, of the same."""
    slots = 2 * num_tokens
    src = [_pool(slots, num_heads, head_size, device) for _ in range(num_planes)]
    dst = src if overlap else [_pool(slots, num_heads, head_size, device) for _ in range(num_planes)]
    reads, writes = (torch.randperm(slots, device=device)[:num_tokens] for _ in range(2))
    return Workload(
        "move_tokens",
        (src, dst, reads, writes, overlap),
        written=(0, 1) if overlap else (1,),
        num_bytes=2 * num_tokens * num_planes * num_heads * head_size * 2,
    )


def _pool(slots: int, num_heads: int, head_size: int, device: torch.device) -> Tensor:
    return values.bits((slots, 1, num_heads, head_size), torch.bfloat16, device)


def compact_cache(
    device: torch.device,
    batch_size: int,
    length: int,
    num_planes: int = 4,
    num_heads: int = 8,
    head_size: int = 128,
    block_size: int = 16,
) -> Workload:
    """Keeps a random half of each sequence, the same for all heads."""
    num_blocks, block_table, _ = values.sequences(batch_size, length, block_size, device)
    shape = (num_blocks, block_size, num_heads, head_size)
    caches = [values.bits(shape, torch.bfloat16, device) for _ in range(num_planes)]
    kept = length // 2
    keep = [torch.randperm(length, device=device)[:kept].sort().values for _ in range(batch_size)]
    bounds = torch.arange(batch_size + 1, device=device) * kept
    return Workload(
        "compact_cache",
        (caches, block_table, torch.cat(keep), bounds),
        written=(0,),
        num_bytes=2 * batch_size * kept * num_planes * num_heads * head_size * 2,
    )


_SMALL, _LARGE = {"num_blocks": 8, "num_layers": 2}, {"num_blocks": 256, "num_layers": 2}
CASES = [
    Case("NHD to HND of 64, 256 x 2 layers", pack_layers, _SMALL, _LARGE),
    Case("to the host, 256 x 2 layers", pack_layers, *({**x, "direction": "d2h"} for x in (_SMALL, _LARGE))),
    Case("HND of 64 to NHD, 256 x 2 layers", unpack_layers, _SMALL, _LARGE),
    Case(
        "4 planes, 4,096 tokens",
        move_tokens,
        {"num_tokens": 37, "num_planes": 2},
        {"num_tokens": 4096, "num_planes": 4},
    ),
    Case.of_sequences(compact_cache, "half of the tokens"),
]
