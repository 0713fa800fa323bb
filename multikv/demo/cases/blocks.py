"""Workloads of the ops that copy, zero and hash blocks of the caches of all layers."""

import torch
from torch import Tensor

from . import values
from .case import Case
from .workload import Workload

__all__ = ["checksum_blocks", "copy_blocks_layers", "zero_blocks"]

ENTRY = (8, 128)  # heads, head size
BLOCK_SIZE = 16


def _caches(device: torch.device, num_layers: int, num_blocks: int, order: str) -> list[Tensor]:
    """Returns a key and a value cache [num_blocks, BLOCK_SIZE, *ENTRY] for each layer, in bfloat16."""
    shape = (num_blocks, BLOCK_SIZE, *ENTRY)
    if order == "HND":
        shape = (num_blocks, ENTRY[0], BLOCK_SIZE, ENTRY[1])
    caches = [values.bits(shape, torch.bfloat16, device) for _ in range(2 * num_layers)]
    return [cache.transpose(1, 2) for cache in caches] if order == "HND" else caches


def _random_blocks(device: torch.device, num_blocks: int) -> Tensor:
    return torch.randperm(num_blocks, device=device, dtype=torch.int32)


def copy_blocks_layers(
    device: torch.device, num_layers: int, num_blocks: int, order: str = "NHD", num_tokens: int = -1
) -> Workload:
    """Copies (num_blocks - values.SPARE_BLOCKS) // 2 blocks to others, in random order."""
    caches, blocks = _caches(device, num_layers, num_blocks, order), _random_blocks(device, num_blocks)
    num_pairs = (num_blocks - values.SPARE_BLOCKS) // 2
    mapping = torch.stack([blocks[:num_pairs], blocks[num_pairs : 2 * num_pairs]], 1)
    tokens = BLOCK_SIZE if num_tokens < 0 else num_tokens
    num_bytes = 2 * len(caches) * num_pairs * tokens * values.num_bytes(caches[0][0, 0])
    return Workload("copy_blocks_layers", (caches, mapping, num_tokens), written=(0,), num_bytes=num_bytes)


def zero_blocks(device: torch.device, num_layers: int, num_blocks: int, order: str = "NHD") -> Workload:
    """Zeroes num_blocks - values.SPARE_BLOCKS whole blocks, in random order."""
    caches = _caches(device, num_layers, num_blocks, order)
    blocks = _random_blocks(device, num_blocks)[: -values.SPARE_BLOCKS]
    num_bytes = len(caches) * len(blocks) * values.num_bytes(caches[0][0])
    return Workload("zero_blocks", (caches, blocks), written=(0,), num_bytes=num_bytes)


def checksum_blocks(device: torch.device, num_layers: int, num_blocks: int, order: str = "NHD") -> Workload:
    """Hashes num_blocks - values.SPARE_BLOCKS whole blocks, in random order."""
    caches = _caches(device, num_layers, num_blocks, order)
    blocks = _random_blocks(device, num_blocks)[: -values.SPARE_BLOCKS]
    out = torch.empty(len(blocks), len(caches), dtype=torch.int64, device=device)
    num_bytes = len(caches) * len(blocks) * values.num_bytes(caches[0][0]) + values.num_bytes(out)
    return Workload("checksum_blocks", (caches, blocks, out), written=(2,), num_bytes=num_bytes)


_SMALL, _LARGE = {"num_layers": 2, "num_blocks": 9}, {"num_layers": 8, "num_blocks": 64 + values.SPARE_BLOCKS}
CASES = [
    Case(f"{name} blocks of 32 KiB", make, _SMALL, _LARGE)
    for make, name in (
        (copy_blocks_layers, "copy, 16 x 32"),
        (zero_blocks, "zero, 16 x 64"),
        (checksum_blocks, "checksum, 16 x 64"),
    )
]
