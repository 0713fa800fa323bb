"""Copies of tokens between caches and staging memory, between caches, and within a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from .formats import bad_index, bits
from .gather import check_bounds

__all__ = ["compact_cache", "move_tokens", "pack_layers", "unpack_layers"]

# A token of a packed call: its place in staging, its block, and its offset in the block.
_PackedToken = tuple[tuple[int, int], int, int]


def _packed_tokens(
    caches: Sequence[Tensor], block_ids: Tensor, staging: Tensor, num_tokens: int, bad_indices: str
) -> list[_PackedToken]:
    """Returns the tokens of blocks that are neither skipped nor bad.

    Entries of block_ids that none of the num_tokens tokens needs are not checked.
    """
    num_blocks, block_size = caches[0].shape[:2]
    ids = block_ids.tolist()
    tokens = []
    for t in range(len(ids) * block_size if num_tokens < 0 else num_tokens):
        i, offset = divmod(t, block_size)
        if 0 <= ids[i] < num_blocks:
            tokens.append((divmod(t, staging.shape[1]), ids[i], offset))
        elif ids[i] >= num_blocks and bad_indices == "raise":
            raise bad_index("block_ids", i, ids[i])
    return tokens


def pack_layers(
    caches: Sequence[Tensor],
    block_ids: Tensor,
    staging: Tensor,
    num_tokens: int = -1,
    head_start: int = 0,
    *,
    bad_indices: str = "raise",
) -> None:
    """Copies staging[t // C, t % C, p] = caches[p][block_ids[t // B], t % B, head_start : head_start + H'].

    caches: planes [N, B, H, D]; block_ids [n]; staging [M, C, planes, H', D]. This is done for every token
    t < num_tokens (-1: n * B) and every plane p. A block with a negative id is skipped.
    """
    heads = slice(head_start, head_start + staging.shape[3])
    for place, block, offset in _packed_tokens(caches, block_ids, staging, num_tokens, bad_indices):
        for p, cache in enumerate(caches):
            bits(staging)[place][p] = bits(cache)[block, offset, heads].to(staging.device)


def unpack_layers(
    staging: Tensor,
    caches: Sequence[Tensor],
    block_ids: Tensor,
    num_tokens: int = -1,
    head_start: int = 0,
    *,
    bad_indices: str = "raise",
) -> None:
    """Copies caches[p][block_ids[t // B], t % B, head_start : head_start + H'] = staging[t // C, t % C, p].

    Shapes, tokens and planes are those of pack_layers. If a block is listed twice, its later tokens are kept.
    """
    heads = slice(head_start, head_start + staging.shape[3])
    for place, block, offset in _packed_tokens(caches, block_ids, staging, num_tokens, bad_indices):
        for p, cache in enumerate(caches):
            bits(cache)[block, offset, heads] = bits(staging)[place][p].to(cache.device)


def move_tokens(
    src: Sequence[Tensor],
    dst: Sequence[Tensor],
    src_slots: Tensor,
    dst_slots: Tensor,
    overlap: bool = False,
    *,
    bad_indices: str = "raise",
) -> None:
    """Copies slot src_slots[i] of src[p] to slot dst_slots[i] of dst[p], for every i and every plane p.

    Planes are [N, B, ...]. A pair with a negative slot is skipped. All slots are read before the first is written. If
    a slot of dst is listed twice, the later token is kept.
    """
    num_slots = [planes[0].shape[0] * planes[0].shape[1] for planes in (src, dst)]
    pairs = []
    for i, pair in enumerate(zip(src_slots.tolist(), dst_slots.tolist(), strict=True)):
        if min(pair) < 0:
            continue
        bad = [side for side in range(2) if pair[side] >= num_slots[side]]
        if not bad:
            pairs.append(pair)
        elif bad_indices == "raise":
            raise bad_index(("src_slots", "dst_slots")[bad[0]], i, pair[bad[0]])
    for source, target in zip(src, dst, strict=True):
        tokens = [bits(source)[divmod(read, source.shape[1])].clone() for read, _ in pairs]
        for (_, written), token in zip(pairs, tokens, strict=True):
            bits(target)[divmod(written, target.shape[1])] = token.to(target.device)


def _kept_tokens(
    keep: Sequence[int], bounds: Sequence[int], starts: Sequence[int], name: tuple[int, ...], bad_indices: str
) -> Iterator[tuple[int, int, int, int]]:
    """Yields (sequence, m, position, destination) for each element of a row of keep that breaks no rule.

    `name` is what precedes m in the subscript of an element of keep.
    """
    for s, start in enumerate(starts):
        for m in range(bounds[s], bounds[s + 1]):
            destination = start + m - bounds[s]
            least = max(destination, keep[m - 1] + 1 if m > bounds[s] else 0)
            if keep[m] >= least:
                yield s, m, keep[m], destination
            elif bad_indices == "raise":
                raise bad_index("keep", (*name, m) if name else m, keep[m])


def _slot_of(
    position: int,
    table: Sequence[int],
    sequence: int,
    cache: Tensor,
    subscript: object,
    bad_indices: str,
) -> tuple[int, int] | None:
    """Returns the block and the offset of a position of a sequence, or None if it has no good block.

    `table` is the sequence's row of the block table, and `subscript` that of the position in `keep`.
    """
    num_blocks, block_size = cache.shape[:2]
    column, offset = divmod(position, block_size)
    if column < len(table) and 0 <= table[column] < num_blocks:
        return table[column], offset
    if bad_indices == "skip":
        return None
    if column >= len(table):
        raise bad_index("keep", subscript, position)
    raise bad_index("block_table", (sequence, column), table[column])


def _moves_of(
    keep: Sequence[int],
    name: tuple[int, ...],
    bounds: Sequence[int],
    starts: Sequence[int],
    block_table: Tensor,
    cache: Tensor,
    bad_indices: str,
) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Returns the slots, each as (block, offset), that the elements of a row of keep are read from and written to."""
    moves = []
    table = block_table.tolist()
    for s, m, position, destination in _kept_tokens(keep, bounds, starts, name, bad_indices):
        subscript = (*name, m) if name else m
        read, written = (_slot_of(q, table[s], s, cache, subscript, bad_indices) for q in (position, destination))
        if read and written and starts[s] >= 0:
            moves.append((read, written))
    return moves


def compact_cache(
    caches: Sequence[Tensor],
    block_table: Tensor,
    keep: Tensor,
    keep_offsets: Tensor,
    dst_start: Tensor | None = None,
    *,
    bad_indices: str = "raise",
) -> None:
    """Moves the kept tokens of each sequence to its front: position keep[..., m] to d = dst_start[s] + m - bounds[s].

    caches: planes [N, B, H, D]; block_table [S, blocks of a sequence]; keep [M] for all heads, [H, M], or [G, H, M], of
    which plane p uses keep[p // (planes / G)]; keep_offsets [S + 1] are the bounds; dst_start [S]. Position q of
    sequence s is in block block_table[s, q // B] at offset q % B. Within a sequence, keep must increase and be at
    least d. An element with keep = d moves nothing, but its block is checked.
    """
    num_heads = caches[0].shape[2]
    bounds = keep_offsets.tolist()
    check_bounds("keep_offsets", bounds, keep.shape[-1])
    starts = [0] * len(block_table) if dst_start is None else dst_start.tolist()
    for s, start in enumerate(starts):
        if start < 0 and bad_indices == "raise":
            raise bad_index("dst_start", s, start)

    rows = keep.flatten(0, -2).tolist() if keep.dim() > 1 else [keep.tolist()]
    names = [((), (number,), divmod(number, num_heads))[keep.dim() - 1] for number in range(len(rows))]
    moves = [
        (number, *move)
        for number, (row, name) in enumerate(zip(rows, names, strict=True))
        for move in _moves_of(row, name, bounds, starts, block_table, caches[0], bad_indices)
    ]
    planes_per_group = len(caches) // (keep.shape[0] if keep.dim() == 3 else 1)
    for p, cache in enumerate(caches):
        for number, read, written in moves:
            group, head = divmod(number, num_heads)
            if keep.dim() == 1:
                bits(cache)[written] = bits(cache)[read].clone()
            elif group == p // planes_per_group:
                bits(cache)[written][head] = bits(cache)[read][head].clone()
