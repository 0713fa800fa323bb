"""Copies, zeroes and hashes blocks of the caches of all layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["checksum_blocks", "copy_blocks_layers", "zero_blocks"]

_copy_blocks_layers = torch.ops.multikv.copy_blocks_layers.default
_zero_blocks = torch.ops.multikv.zero_blocks.default
_checksum_blocks = torch.ops.multikv.checksum_blocks.default


def copy_blocks_layers(caches: Sequence[Tensor], block_mapping: Tensor, num_tokens: int = -1) -> None:
    """Copies blocks to other blocks of the same cache, in the caches of all layers, bit for bit.

    `caches[p][dst, :num_tokens] = caches[p][src, :num_tokens]` for every row (src, dst) of block_mapping and every p.
    This is the copy on write of a scheduler that shares blocks between sequences. On a GPU, one launch copies the
    blocks of all caches of equal shape and strides.

    Args:
        caches: at least one tensor [num_blocks, block_size, ...], written: the key and value caches of all layers.
            num_blocks is the same for all. All else may differ: strides, dtypes and numbers of dimensions, and, if
            num_tokens is -1, the block size.
        block_mapping: [num_pairs, 2], int32 or int64, on the device of the caches or on the CPU: source block,
            destination block. A pair with a negative block is padding, and a pair of equal blocks copies nothing. A
            block may be copied to several blocks. The destination of a pair must not be the source or the destination
            of another pair. If block_mapping is on the CPU, the call raises RuntimeError for such a block. If
            block_mapping is on a GPU, what is copied to and from such a block is undefined.
        num_tokens: the number of tokens of a block that are copied, from the first on. -1: whole blocks; dimension 1
            need not be that of the tokens then.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride, or, if block_mapping is on the CPU, a
            destination block is in two pairs.
        IndexError: a block is num_blocks or more. If block_mapping is on a GPU, that pair is skipped instead, unless
            indices are checked.

    Example:
        >>> caches = [torch.randn(64, 16, 8, 128, dtype=torch.bfloat16) for _ in range(2 * 32)]
        >>> multikv.copy_blocks_layers(caches, torch.tensor([[3, 10], [5, 11]]))
        >>> torch.equal(caches[7][11], caches[7][5])
        True
    """
    _copy_blocks_layers(caches, block_mapping, num_tokens)


def zero_blocks(caches: Sequence[Tensor], block_ids: Tensor, first_token: Tensor | None = None) -> None:
    """Sets all bytes of blocks to 0, in the caches of all layers.

    `caches[p][block_ids[i], first_token[i]:] = 0` for every i and p. Bytes between the elements of a cache (padding)
    keep their content. On a GPU, one launch zeroes the blocks of all caches of equal shape and strides.

    Args:
        caches: at least one tensor [num_blocks, block_size, ...], written. num_blocks is the same for all and, if
            first_token is given, so is block_size. All else may differ.
        block_ids: [n], int32 or int64, on the device of the caches or on the CPU. A negative block is skipped, and a
            block may be listed twice.
        first_token: [n], int32 or int64, on the device of block_ids: for each block, the first token that is zeroed. If
            it is block_size or more, nothing is zeroed in this block. None: whole blocks.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.
        IndexError: a block is num_blocks or more, or its first_token is negative. If the lists are on a GPU, that block
            is skipped instead, unless indices are checked.

    Example:
        >>> caches = [torch.randn(64, 16, 8, 128) for _ in range(2 * 32)]
        >>> multikv.zero_blocks(caches, torch.tensor([3, 5]), first_token=torch.tensor([0, 12]))
        >>> caches[7][5, 11:].count_nonzero(dim=(1, 2)).tolist()
        [1024, 0, 0, 0, 0]
    """
    _zero_blocks(caches, block_ids, first_token)


def checksum_blocks(caches: Sequence[Tensor], block_ids: Tensor, out: Tensor, num_tokens: Tensor | None = None) -> None:
    """Computes a 64-bit hash of the bytes of each block of each cache.

    Equal contents have equal hashes on every device, whatever the strides of the caches. The hash detects errors of
    transfers and stores. It is not cryptographic: contents with a given hash are easily made.

    The message of a block is the bytes of its elements in the order token, then the other dimensions. It is split into
    8-byte little-endian words w_1, w_2, ..., the last padded with zeros. mix() is the last steps of the random number
    generator splitmix64, and all arithmetic is modulo 2^64:

        hash = mix((sum over i of mix(w_i xor i * 0x9E3779B97F4A7C15)) xor number of bytes)

    Args:
        caches: at least one tensor [num_blocks, block_size, ...]. num_blocks is the same for all and, if num_tokens is
            given, so is block_size. All else may differ.
        block_ids: [n], int32 or int64, on the device of the caches or on the CPU. A negative block is skipped: its row
            of out keeps its content.
        out: [n, number of caches], int64, on the device of the caches, written: the hashes, in two's complement.
        num_tokens: [n], int32 or int64, on the device of block_ids: for each block, the number of tokens that are
            hashed, from the first on. None: whole blocks.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.
        IndexError: a block is num_blocks or more, or its num_tokens is negative or above block_size. If the lists are
            on a GPU, the row of out keeps its content instead, unless indices are checked.

    Example:
        >>> caches = [torch.zeros(64, 2, 1, 8, dtype=torch.uint8) for _ in range(3)]
        >>> caches[0][5] = torch.arange(16).view(2, 1, 8)
        >>> hashes = torch.empty(1, 3, dtype=torch.int64)
        >>> multikv.checksum_blocks(caches, torch.tensor([5]), hashes)
        >>> hex(hashes[0, 0])
        '0x2c897a057b282716'
    """
    _checksum_blocks(caches, block_ids, out, num_tokens)
