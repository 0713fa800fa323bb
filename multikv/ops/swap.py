"""Blocks between the memories of GPUs and their host."""

from collections.abc import Sequence

import torch
from torch import Tensor

_swap_blocks = torch.ops.multikv.swap_blocks.default
_swap_blocks_layers = torch.ops.multikv.swap_blocks_layers.default
_swap_blocks_batch = torch.ops.multikv.swap_blocks_batch.default


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    """Copies blocks (it does not exchange them): of a GPU to the host, back, within a GPU, to another, within the host.

    For every pair (s, d) of block_mapping, block_size_in_bytes bytes from byte `s * block_size_in_bytes` of src to byte
    `d * block_size_in_bytes` of dst. All pairs are checked, on every device, before anything is copied.

    On a GPU it is asynchronous, on the current stream, if the host's side is pinned (multikv.empty_pinned); memory that
    is not pinned works too, and then the call returns when it is done. block_mapping may be changed or freed as soon as
    the call returns. Neighbours are copied as one. What copies, a kernel or a copy engine: docs/swap.md.

    Args:
        src: any shape and dtype, contiguous, on the CPU or a GPU.
        dst: likewise, written; need not be of src's shape or dtype. Between two GPUs, the call takes its turn in the
            current streams of both.
        block_size_in_bytes: at least 1.
        block_mapping: [num_pairs, 2], int64, on the CPU: blocks of src and of dst. No two pairs have one dst, and none
            reads what another, or itself, writes. One block of src may go to several of dst.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype, device or stride; two pairs with one dst; a block that
            is both read and written; an error of the copy.
        IndexError: a block outside src or dst.
    """
    _swap_blocks(src, dst, block_size_in_bytes, block_mapping)


def swap_blocks_layers(
    src: Sequence[Tensor], dst: Sequence[Tensor], block_size_in_bytes: int, block_mapping: Tensor
) -> None:
    """swap_blocks for every pair of tensors (src[i], dst[i]), with one mapping for all, checked once and submitted once.

    Args:
        src: one tensor per layer, each as in swap_blocks; all on one device.
        dst: as many, likewise, written; all on one device. Of what is written nothing overlaps, nor is it read,
            whatever the layer.
        block_size_in_bytes: at least 1, in all layers the same.
        block_mapping: [num_pairs, 2], int64, on the CPU, as in swap_blocks; every block lies inside the tensors of
            every layer.

    Raises:
        RuntimeError: as swap_blocks; lists of different lengths.
        IndexError: a block outside one of the tensors.
    """
    _swap_blocks_layers(src, dst, block_size_in_bytes, block_mapping)


def swap_blocks_batch(
    src_ptrs: Tensor, dst_ptrs: Tensor, sizes: Tensor, is_src_access_order_any: bool = False
) -> None:
    """Copies between addresses, those of any memory: `sizes[i]` bytes from `src_ptrs[i]` to `dst_ptrs[i]`.

    *Unsafe*: the caller vouches for every address, that it stays valid until the copy is done, and that nothing is
    written that this call also reads or writes elsewhere. An address that no memory is at is found and raised where
    the driver can tell (freed, or never there); one inside memory that is somebody else's cannot be. The safe form of
    it is swap_blocks_layers.

    Where a GPU's library is loaded and the process uses a GPU, copies are asynchronous on the current stream of the
    current device, if all memory of the host in it is pinned. Else they are done when the call returns.

    Args:
        src_ptrs: [num_copies], int64, on the CPU.
        dst_ptrs: [num_copies], int64, on the CPU. What it points to is written; it counts as written itself, so that a
            compiler keeps the call.
        sizes: [num_copies], int64, on the CPU, in bytes; 0: nothing is copied.
        is_src_access_order_any: sources may be read at any time from the call on, before earlier work on the stream is
            done: for sources that nobody writes. Only copies in batches by the copy engines make use of it.

    Raises:
        RuntimeError: an argument of a wrong rank, size, dtype or device; a size below 0; an address at which there is
            no memory; an error of the copy.
    """
    _swap_blocks_batch(src_ptrs, dst_ptrs, sizes, is_src_access_order_any)
