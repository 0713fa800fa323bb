"""Tokens to and from staging memory, between caches, and within a cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.support.vectorised.gathers import check_bounds
from tests.support.vectorised.numbers import bits, put

__all__ = ["compact_cache", "move_tokens", "pack_layers", "unpack_layers"]


def _raise_first(argument: str, bad: Tensor, values: Tensor) -> None:
    if bad.any():
        at = int(bad.nonzero()[0])
        raise IndexError(f"{argument}[{at}] is {values[at]}")


def _last_of_each(written: Tensor) -> Tensor:
    """The elements, in any order, whose value no later element has: PyTorch's index operations want no duplicates."""
    last = torch.full((int(written.max()) + 1,), -1) if len(written) else written.new_empty(0)
    last.scatter_reduce_(0, written, torch.arange(len(written)), "amax")
    return last[last >= 0]


def _packed_tokens(
    caches: Sequence[Tensor], block_ids: Tensor, staging: Tensor, num_tokens: int, bad_indices: str
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows and columns of staging, and the blocks and offsets that belong to them."""
    num_blocks, block_size = caches[0].shape[:2]
    tokens = torch.arange(len(block_ids) * block_size if num_tokens < 0 else num_tokens)
    ids = block_ids.cpu().long()[: -(-len(tokens) // block_size)]
    if bad_indices == "raise":
        _raise_first("block_ids", ids >= num_blocks, ids)
    blocks = ids.repeat_interleave(block_size)[: len(tokens)]
    good = (blocks >= 0) & (blocks < num_blocks)
    tokens, blocks = tokens[good], blocks[good]
    chunk = max(1, staging.shape[1])
    return (tokens // chunk, tokens % chunk), (blocks, tokens % block_size)


def pack_layers(
    caches: Sequence[Tensor],
    block_ids: Tensor,
    staging: Tensor,
    num_tokens: int = -1,
    head_start: int = 0,
    *,
    bad_indices: str = "raise",
) -> None:
    places, sources = _packed_tokens(caches, block_ids, staging, num_tokens, bad_indices)
    heads = slice(head_start, head_start + staging.shape[3])
    for p, cache in enumerate(caches):
        at = [x.to(cache.device) for x in sources]
        put(staging[:, :, p], places, bits(cache)[at[0], at[1], heads])


def unpack_layers(
    staging: Tensor,
    caches: Sequence[Tensor],
    block_ids: Tensor,
    num_tokens: int = -1,
    head_start: int = 0,
    *,
    bad_indices: str = "raise",
) -> None:
    (rows, columns), (blocks, offsets) = _packed_tokens(caches, block_ids, staging, num_tokens, bad_indices)
    last = _last_of_each(blocks * caches[0].shape[1] + offsets)
    rows, columns, blocks, offsets = (x[last] for x in (rows, columns, blocks, offsets))
    heads = slice(head_start, head_start + staging.shape[3])
    for p, cache in enumerate(caches):
        at = [x.to(staging.device) for x in (rows, columns)]
        put(cache[:, :, heads], (blocks, offsets), bits(staging)[at[0], at[1], p])


def move_tokens(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    src_slots: Tensor,
    dst_slots: Tensor,
    overlap: bool = False,
    *,
    bad_indices: str = "raise",
) -> None:
    slots = [x.cpu().long() for x in (src_slots, dst_slots)]
    limits = [planes[0].shape[0] * planes[0].shape[1] for planes in (src, dst)]
    given = (slots[0] >= 0) & (slots[1] >= 0)
    past = [given & (x >= limit) for x, limit in zip(slots, limits, strict=True)]
    if bad_indices == "raise" and (past[0] | past[1]).any():
        at = int((past[0] | past[1]).nonzero()[0])
        side = 0 if past[0][at] else 1
        raise IndexError(f"{('src_slots', 'dst_slots')[side]}[{at}] is {slots[side][at]}")
    good = given & ~past[0] & ~past[1]
    reads, writes = (x[good] for x in slots)
    last = _last_of_each(writes)
    reads, writes = reads[last], writes[last]
    for source, target in zip(src, dst, strict=True):
        at = reads.to(source.device)
        tokens = bits(source)[at // source.shape[1], at % source.shape[1]]
        put(target, (writes // target.shape[1], writes % target.shape[1]), tokens)


def compact_cache(
    caches: Sequence[Tensor],
    block_table: Tensor,
    keep: Tensor,
    keep_offsets: Tensor,
    dst_start: Tensor | None = None,
    *,
    bad_indices: str = "raise",
) -> None:
    block_size, num_heads = caches[0].shape[1:3]
    bounds, table = keep_offsets.cpu().long(), block_table.cpu().long()
    check_bounds("keep_offsets", bounds, keep.shape[-1])
    starts = bounds.new_zeros(len(table)) if dst_start is None else dst_start.cpu().long()
    if bad_indices == "raise":
        _raise_first("dst_start", starts < 0, starts)
    sequence = torch.arange(len(table)).repeat_interleave(bounds[1:] - bounds[:-1])
    m = torch.arange(len(sequence)) + (int(bounds[0]) if len(bounds) else 0)
    destination = m - bounds[:-1][sequence] + starts[sequence]
    rows = keep.cpu().long().flatten(0, -2) if keep.dim() > 1 else keep.cpu().long()[None]
    groups = keep.shape[0] if keep.dim() == 3 else 1
    elements = (sequence, m, destination, starts)
    names = [((), (number,), divmod(number, num_heads))[keep.dim() - 1] for number in range(len(rows))]
    moves = [_moved(row, name, elements, table, caches[0], bad_indices) for row, name in zip(rows, names, strict=True)]
    for number, (reads, writes) in enumerate(moves):
        heads = slice(None) if keep.dim() == 1 else slice(number % num_heads, number % num_heads + 1)
        first = number // num_heads if keep.dim() == 3 else 0
        for cache in caches[first * (len(caches) // groups) : (first + 1) * (len(caches) // groups)]:
            at = reads.to(cache.device)
            tokens = bits(cache)[at // block_size, at % block_size, heads]
            put(cache[:, :, heads], (writes // block_size, writes % block_size), tokens)


def _moved(
    row: Tensor,
    name: tuple[int, ...],
    elements: tuple[Tensor, ...],
    table: Tensor,
    cache: Tensor,
    bad_indices: str,
) -> tuple[Tensor, Tensor]:
    """The slots that the elements of a row of keep are read from and written to."""
    sequence, m, destination, starts = elements
    num_blocks, block_size = cache.shape[:2]
    position = row[m]
    is_first = torch.ones(len(m), dtype=torch.bool)
    is_first[1:] = sequence[1:] != sequence[:-1]
    before = torch.where(is_first, -1, row[(m - 1).clamp(min=0)])
    ordered = position >= torch.maximum(destination, before + 1)
    good, slots, faults = ordered & (starts[sequence] >= 0), [], [~ordered]
    for q in (position, destination):
        column = q.clamp(min=0) // block_size
        inside = column < table.shape[1]
        at = torch.where(inside, column, 0)
        block = table[sequence, at] if table.shape[1] else torch.full_like(q, -1)
        good = good & inside & (block >= 0) & (block < num_blocks)
        faults += [~inside, inside & ((block < 0) | (block >= num_blocks))]
        slots.append(block * block_size + q % block_size)
    if bad_indices == "raise" and not good.all():
        _raise_fault(
            int((~good).nonzero()[0]),
            [bool(x[(~good).nonzero()[0]]) for x in faults],
            name,
            row,
            elements,
            table,
            block_size,
        )
    return slots[0][good], slots[1][good]


def _raise_fault(
    at: int,
    faults: list[bool],
    name: tuple[int, ...],
    row: Tensor,
    elements: tuple[Tensor, ...],
    table: Tensor,
    block_size: int,
) -> None:
    sequence, m, destination, _ = elements
    kind = faults.index(True)
    if kind in (0, 1):
        subscript = (*name, int(m[at])) if name else int(m[at])
        raise IndexError(f"keep[{subscript}] is {row[m[at]]}")
    q = row[m[at]] if kind == 2 else destination[at]
    s, column = int(sequence[at]), int(q // block_size)
    raise IndexError(f"block_table[{(s, column)}] is {table[s, column]}")
