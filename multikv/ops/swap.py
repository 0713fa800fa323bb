"""Blocks between the memories of a GPU and its host."""

import torch
from torch import Tensor

_swap_blocks = torch.ops.multikv.swap_blocks.default


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    """Copies blocks (it does not exchange them): those of a GPU to the host, back, within a GPU, or within the host.

    For every pair (s, d) of block_mapping, block_size_in_bytes bytes from byte `s * block_size_in_bytes` of src to byte
    `d * block_size_in_bytes` of dst. All pairs are checked, on every device, before anything is copied.

    On a GPU it is asynchronous, on the current stream, if the host's side is pinned; memory that is not pinned works
    too, and then the call returns when it is done.

    Args:
        src: any shape and dtype, contiguous, on the CPU or a GPU.
        dst: likewise, written; need not be of src's shape or dtype. Two GPUs are an error.
        block_size_in_bytes: at least 1.
        block_mapping: [num_pairs, 2], int64, on the CPU: blocks of src and of dst. No two pairs have one dst, and none
            reads what another, or itself, writes. One block of src may go to several of dst.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device or stride; two pairs with one dst; a block that
            is both read and written; an error of the copy.
        IndexError: a block outside src or dst.
    """
    _swap_blocks(src, dst, block_size_in_bytes, block_mapping)
