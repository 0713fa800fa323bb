"""Blocks from one tensor to another."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import bad_index


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    """Copies the bytes of block s of src to block d of dst, for every pair (s, d) in block_mapping [n, 2].

    Blocks are counted from the start of each tensor; both are contiguous. A block that is not wholly inside its tensor
    raises, on every device. No two pairs have one destination, and none writes to what another reads.
    """
    source, target = (x.view(-1).view(torch.uint8) for x in (src, dst))
    pairs = block_mapping.tolist()
    for i, pair in enumerate(pairs):
        for side, (block, bytes) in enumerate(zip(pair, (source, target))):
            if not 0 <= block < len(bytes) // block_size_in_bytes:
                raise bad_index("block_mapping", (i, side), block)
    for s, d in pairs:
        first, second = s * block_size_in_bytes, d * block_size_in_bytes
        target[second : second + block_size_in_bytes] = source[first : first + block_size_in_bytes]
