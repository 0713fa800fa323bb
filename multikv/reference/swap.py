"""Copies of blocks from one tensor to another."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import bad_index

__all__ = ["swap_blocks", "swap_blocks_batch", "swap_blocks_layers"]


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    """Copies the bytes of block s of src to block d of dst, for every pair (s, d) in block_mapping [n, 2].

    Both tensors are contiguous, and block i is the bytes from i * block_size_in_bytes on. A block that is not wholly
    inside its tensor raises IndexError, on every device. Destination blocks are assumed to be distinct, and to overlap
    no source block.
    """
    source, target = (x.view(-1).view(torch.uint8) for x in (src, dst))
    pairs = block_mapping.tolist()
    for i, pair in enumerate(pairs):
        for side, (block, memory) in enumerate(zip(pair, (source, target), strict=True)):
            if not 0 <= block < len(memory) // block_size_in_bytes:
                raise bad_index("block_mapping", (i, side), block)
    for s, d in pairs:
        read, write = s * block_size_in_bytes, d * block_size_in_bytes  # offsets in bytes
        target[write : write + block_size_in_bytes] = source[read : read + block_size_in_bytes]


def swap_blocks_layers(
    src: Sequence[Tensor], dst: Sequence[Tensor], block_size_in_bytes: int, block_mapping: Tensor
) -> None:
    """Does what swap_blocks does for every layer, with one mapping."""
    for source, target in zip(src, dst, strict=True):
        swap_blocks(source, target, block_size_in_bytes, block_mapping)


def swap_blocks_batch(src_ptrs: Tensor, dst_ptrs: Tensor, sizes: Tensor, is_src_access_order_any: bool = False) -> None:
    """Copies sizes[i] bytes from address src_ptrs[i] to address dst_ptrs[i], all in host memory, for every i."""
    for source, target, size in zip(src_ptrs.tolist(), dst_ptrs.tolist(), sizes.tolist(), strict=True):
        ctypes.memmove(target, source, size)
