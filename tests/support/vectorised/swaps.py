"""Blocks from one tensor to another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "swap_blocks",
    "swap_blocks_layers",
]


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    source, target = (_whole_blocks(x, block_size_in_bytes) for x in (src, dst))
    if not len(block_mapping):
        return
    for side, blocks in enumerate((source, target)):
        bad = (block_mapping[:, side] < 0) | (block_mapping[:, side] >= len(blocks))
        if bad.any():
            pair = int(bad.nonzero()[0])
            raise IndexError(f"block_mapping[{(pair, side)}] is {block_mapping[pair, side]}")
    reads, writes = block_mapping.long().unbind(1)
    target[writes.to(target.device)] = source[reads.to(source.device)].to(target.device)


def _whole_blocks(x: Tensor, block_bytes: int) -> Tensor:
    bytes = x.view(-1).view(torch.uint8)
    return bytes[: len(bytes) // block_bytes * block_bytes].view(-1, block_bytes)


def swap_blocks_layers(
    src: Sequence[Tensor], dst: Sequence[Tensor], block_size_in_bytes: int, block_mapping: Tensor
) -> None:
    for source, target in zip(src, dst, strict=True):
        swap_blocks(source, target, block_size_in_bytes, block_mapping)
