"""Swaps: copy blocks between the memories of GPUs and the host. See docs/swap.md."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["swap_blocks", "swap_blocks_batch", "swap_blocks_layers"]

_swap_blocks = explaining(torch.ops.multikv.swap_blocks.default)
_swap_blocks_layers = explaining(torch.ops.multikv.swap_blocks_layers.default)
_swap_blocks_batch = explaining(torch.ops.multikv.swap_blocks_batch.default)


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    """Copies blocks from GPU to host, host to GPU, within a GPU, from GPU to GPU, or within the host.

    For every pair (s, d) of block_mapping, block_size_in_bytes bytes are copied from byte `s * block_size_in_bytes` of
    src to byte `d * block_size_in_bytes` of dst. Blocks are copied, not exchanged. All pairs are checked, on every
    device, before anything is copied.

    On a GPU the copy is asynchronous, on the current stream, if the host memory is pinned (see multikv.empty_pinned).
    With pageable host memory the call waits: when it returns, all blocks on the host have been read or written. A copy
    from pageable memory to a GPU may then still be in flight on the stream. block_mapping may be changed or freed as
    soon as the call returns. Blocks that are neighbours in both tensors are copied together, as one run. docs/swap.md
    says which runs a kernel copies and which a copy engine.

    Args:
        src: any shape and dtype, contiguous, on the CPU or a GPU.
        dst: any shape and dtype, contiguous, on the CPU or a GPU, written. Shape and dtype may differ from those of
            src, and dst may be src. A copy between two GPUs is ordered after earlier work, and before later work, on
            the current streams of both. If the copy is captured into a CUDA graph, only the captured stream orders it.
        block_size_in_bytes: at least 1. For a whole block of a cache it is `cache[0].nbytes`.
        block_mapping: [num_pairs, 2], int64, on the CPU: block of src, block of dst. The destination blocks are
            distinct, and no source block overlaps a destination block in memory. A block of src may be copied to
            several blocks of dst.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride, two pairs have the same block of dst,
            a block is both read and written, or the copy fails.
        IndexError: a block is outside src or dst.

    Example:
        >>> cache = torch.zeros(64, 16, 8, 128, dtype=torch.bfloat16, device="cuda")
        >>> pool = multikv.empty_pinned((256, 16, 8, 128), torch.bfloat16)
        >>> multikv.swap_blocks(cache, pool, cache[0].nbytes, torch.tensor([[3, 100], [5, 101]]))
    """
    _swap_blocks(src, dst, block_size_in_bytes, block_mapping)


def swap_blocks_layers(
    src: Sequence[Tensor], dst: Sequence[Tensor], block_size_in_bytes: int, block_mapping: Tensor
) -> None:
    """Does what swap_blocks does for every pair of tensors (src[i], dst[i]), with one mapping for all layers.

    The mapping is checked once, and all copies are submitted together.

    Args:
        src: one tensor per layer, each as in swap_blocks, all on one device.
        dst: as many tensors, each as in swap_blocks, all on one device, written. A destination block overlaps
            no source block and no other destination block, of its own or another layer.
        block_size_in_bytes: at least 1, the same for all layers.
        block_mapping: [num_pairs, 2], int64, on the CPU, as in swap_blocks. Every block is inside the tensors of every
            layer.

    Raises:
        RuntimeError: as for swap_blocks, or the lists have different lengths.
        IndexError: a block is outside one of the tensors.

    Example:
        >>> caches = [torch.zeros(64, 16, 576, dtype=torch.bfloat16, device="cuda") for _ in range(32)]
        >>> pools = multikv.empty_pinned((32, 256, 16, 576), torch.bfloat16).unbind()
        >>> multikv.swap_blocks_layers(caches, pools, caches[0][0].nbytes, torch.tensor([[3, 100], [5, 101]]))
    """
    _swap_blocks_layers(src, dst, block_size_in_bytes, block_mapping)


def swap_blocks_batch(src_ptrs: Tensor, dst_ptrs: Tensor, sizes: Tensor, is_src_access_order_any: bool = False) -> None:
    """Copies `sizes[i]` bytes from address `src_ptrs[i]` to address `dst_ptrs[i]`, of any GPU or the host, for every i.

    *Unsafe*: the caller guarantees that the memory at every address is valid until the copy is done, and that no
    destination overlaps a source or another destination. A wrong address at which there is memory is not detected.
    swap_blocks_layers does the same with tensors, which it checks.

    If a GPU library is loaded and the process has used the current GPU, the GPU library makes the copies, on the
    current stream of this GPU. The copies are asynchronous if all host memory among them is pinned. With pageable host
    memory the call waits as swap_blocks does. An address at which there is no memory raises RuntimeError.

    Otherwise the CPU makes the copies, and the call returns when they are done. A null address raises RuntimeError, but
    any other address at which there is no memory crashes the process.

    Args:
        src_ptrs: [num_copies], int64, on the CPU.
        dst_ptrs: [num_copies], int64, on the CPU. The memory at these addresses is written, dst_ptrs itself is not. The
            schema marks dst_ptrs as written, so that torch.compile does not remove the call.
        sizes: [num_copies], int64, on the CPU, in bytes. A size of 0 copies nothing.
        is_src_access_order_any: whether the sources may be read before earlier work on the stream is done. True is
            safe only if that work does not write the sources. Only batched copies by the copy engines make use of it.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype or device, a size is negative, an address is null or
            has no memory (see above), or the copy fails.

    Example:
        >>> src, dst = torch.randn(1024), torch.empty(1024)
        >>> addresses = (torch.tensor([x.data_ptr()]) for x in (src, dst))
        >>> multikv.swap_blocks_batch(*addresses, torch.tensor([src.nbytes]))
    """
    _swap_blocks_batch(src_ptrs, dst_ptrs, sizes, is_src_access_order_any)
