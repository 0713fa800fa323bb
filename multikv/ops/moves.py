"""Moves of tokens: between caches and staging memory, between caches, and within a cache. See docs/layouts.md."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["compact_cache", "move_tokens", "pack_layers", "unpack_layers"]

_pack_layers = explaining(torch.ops.multikv.pack_layers.default)
_unpack_layers = explaining(torch.ops.multikv.unpack_layers.default)
_move_tokens = explaining(torch.ops.multikv.move_tokens.default)
_compact_cache = explaining(torch.ops.multikv.compact_cache.default)


def pack_layers(
    caches: Sequence[Tensor], block_ids: Tensor, staging: Tensor, num_tokens: int = -1, head_start: int = 0
) -> None:
    """Copies blocks of all layers to one staging tensor, whose strides say in which layout.

    Token t of the listed blocks is token `t % block_size` of block `block_ids[t // block_size]`. For every token
    t < num_tokens, every plane p and every head h < H':

        staging[t // C, t % C, p, h] = caches[p][block_ids[t // block_size], t % block_size, head_start + h]

    The op copies bytes. docs/layouts.md shows views of staging that have the layout of another project, that change the
    block size or the order of dimensions, or that hold the share of another tensor-parallel rank.

    Args:
        caches: planes, at least one: each [num_blocks, block_size, num_heads, head_size], any strides. A plane is the K
            or the V of one layer; the cache of an MLA layer is a plane of one head. Only the strides of the planes, and
            dtypes of the same size, may differ.
        block_ids: [n], int32 or int64, on the device of the planes or on the CPU. A list on the CPU may be changed or
            freed as soon as the call returns. A negative id is padding: its tokens keep their content in staging.
        staging: [M, C, planes, H', head_size], any strides without overlaps, elements of the same size as the planes',
            written. It is on the device of the planes or in pinned host memory (see multikv.empty_pinned). C need not
            be the block size.
        num_tokens: at most `n * block_size`, and at most `M * C`; -1: `n * block_size`. Ids of blocks that no token
            needs are not checked.
        head_start: the first head that is copied; `head_start + H'` is at most num_heads.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride, num_tokens or head_start is outside
            its range, or staging is in pageable host memory and the planes are on a GPU.
        IndexError: an id is num_blocks or more; on a GPU only for a list on the CPU, or if indices are checked.

    Example:
        >>> caches = [torch.zeros(64, 16, 8, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2 * 32)]
        >>> pool = multikv.empty_pinned((4, 16, 64, 8, 128), torch.bfloat16)
        >>> multikv.pack_layers(caches, torch.tensor([3, 60, 5, 7]), pool)
    """
    _pack_layers(caches, block_ids, staging, num_tokens, head_start)


def unpack_layers(
    staging: Tensor, caches: Sequence[Tensor], block_ids: Tensor, num_tokens: int = -1, head_start: int = 0
) -> None:
    """Copies one staging tensor to blocks of all layers: pack_layers in the other direction.

    For every token t < num_tokens, every plane p and every head h < H':

        caches[p][block_ids[t // block_size], t % block_size, head_start + h] = staging[t // C, t % C, p, h]

    All other slots and heads keep their content.

    Args:
        staging: [M, C, planes, H', head_size], any strides, as in pack_layers.
        caches: planes, as in pack_layers, written.
        block_ids: [n], as in pack_layers. If a block is listed twice, a CPU stores the later tokens. On a GPU every
            element comes whole from one of the two tokens, but the elements of a token may come from both.
        num_tokens: as in pack_layers.
        head_start: the first head that is written; `head_start + H'` is at most num_heads.

    Raises:
        RuntimeError: as for pack_layers.
        IndexError: as for pack_layers.

    Example:
        >>> caches = [torch.zeros(64, 16, 8, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2 * 32)]
        >>> pool = multikv.empty_pinned((4, 16, 64, 8, 128), torch.bfloat16)
        >>> multikv.unpack_layers(pool, caches, torch.tensor([0, 1, 2, 3]), num_tokens=50)
    """
    _unpack_layers(staging, caches, block_ids, num_tokens, head_start)


def move_tokens(
    src: Sequence[Tensor], dst: Sequence[Tensor], src_slots: Tensor, dst_slots: Tensor, overlap: bool = False
) -> None:
    """Copies tokens from slots of src to slots of dst, in all layers: slot `src_slots[i]` to slot `dst_slots[i]`.

    A pool of tokens without blocks, [slots, num_heads, head_size], is given as `pool.unsqueeze(1)`. The op copies
    bytes.

    Args:
        src: planes, at least one: each [num_blocks, block_size, ...], any strides, all with the same num_blocks and
            block_size. They are on the device of the op, or in pinned host memory (see multikv.empty_pinned).
        dst: as many planes, written. dst[p] has the dimensions of src[p] after the second, and elements of the same
            size. Its num_blocks, block_size and strides may differ. src and dst are not both in host memory, unless
            the op runs on a CPU.
        src_slots: [n], int32 or int64, on the device of the op, or on the CPU like dst_slots. A pair with a negative
            slot is padding: the op skips it.
        dst_slots: [n], int32 or int64, on the device of src_slots. If a slot is listed twice, a CPU stores the last of
            its tokens. On a GPU every element comes whole from one of the tokens, but the elements of a slot may come
            from several.
        overlap: True: all tokens are read as if before the first is written, so that src[p] and dst[p] may share
            memory. A slot of src[p] and a slot of dst[p] must then be the same memory, or share no memory. n is at most
            4096. False: a slot that is both read and written gets an undefined content.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride, n is above 4096 with overlap, or
            planes of a GPU call are in pageable memory or all in host memory.
        IndexError: a slot is past the end; on a GPU only for lists on the CPU, or if indices are checked.

    Example:
        >>> pool = [torch.randn(1024, 8, 128, dtype=torch.bfloat16, device="cuda").unsqueeze(1) for _ in range(2 * 32)]
        >>> accepted, front = (torch.tensor(x, device="cuda") for x in ([17, 19, 22], [17, 18, 19]))
        >>> multikv.move_tokens(pool, pool, accepted, front, overlap=True)
    """
    _move_tokens(src, dst, src_slots, dst_slots, overlap)


def compact_cache(
    caches: Sequence[Tensor],
    block_table: Tensor,
    keep: Tensor,
    keep_offsets: Tensor,
    dst_start: Tensor | None = None,
) -> None:
    """Moves the tokens of each sequence that are kept to its front, in place, in all layers.

    Sequence s keeps the positions keep[m], keep_offsets[s] <= m < keep_offsets[s + 1]. Position keep[m] moves to
    position `d = dst_start[s] + m - keep_offsets[s]`. Position q of sequence s is in block
    `block_table[s, q // block_size]` at offset `q % block_size`. With `keep = [0, 3, 4]` and `dst_start = [0]`:

        position   0   1   2   3   4   5
        before     a   b   c   d   e   f
        after      a   d   e   d   e   f

    Other positions keep their content. Sequences must not share a block that is written; to free blocks is up to the
    caller.

    Args:
        caches: planes, at least one: each [num_blocks, block_size, num_heads, head_size], any strides, written. Planes
            may differ in head_size, in dtype and in strides, so that tensors of scales [num_blocks, block_size,
            num_heads, 1] can move along.
        block_table: [num_sequences, blocks per sequence], int32 or int64.
        keep: int32 or int64: [M] for all heads and planes, [num_heads, M], or [groups, num_heads, M]. With groups, the
            planes are divided into that many runs of equal length, and plane p uses `keep[p // (planes / groups)]`.
            Within a sequence and head, positions increase and are not below their destination d.
        keep_offsets: [num_sequences + 1], int32 or int64, from 0 to M, not decreasing.
        dst_start: [num_sequences], int32 or int64, at least 0: the destination of the first kept position of each
            sequence. None: 0. It is the number of tokens at the front that stay, such as attention sinks.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device or stride.
        IndexError: a position breaks a rule, a needed block is outside the planes, a bound or a start is bad. On a GPU
            only if indices are checked; otherwise the op does not move a token with a bad position or block, nor any
            token of a sequence with a negative start.

    Example:
        >>> caches = [torch.randn(64, 16, 8, 128) for _ in range(4)]
        >>> table, keep = torch.tensor([[7, 3]]), torch.tensor([0, 5, 16, 30])
        >>> multikv.compact_cache(caches, table, keep, torch.tensor([0, 4]))
    """
    _compact_cache(caches, block_table, keep, keep_offsets, dst_start)
