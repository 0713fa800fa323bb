"""Good calls of the ops that move tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.tensors import embed, pinned

# The dimensions of a plane [blocks, block_size, heads, head_size] in memory, from the outermost to the innermost.
ORDERS = {"NHD": (0, 1, 2, 3), "HND": (0, 2, 1, 3), "slots_outside": (1, 0, 2, 3)}
# Those of staging [M, C, planes, heads, head_size].
STAGING_ORDERS = {
    "dense": (0, 1, 2, 3, 4),
    "plane_first": (2, 0, 1, 3, 4),
    "token_last": (0, 2, 3, 1, 4),
    "heads_outside": (0, 3, 2, 1, 4),
}
# No token needs these blocks, so nobody may look at them.
BAD_IDS = (10**6, 2**31 - 1)


def _placed(place: str, device: torch.device | str, *shape_and_dtype: object, **options: object) -> Tensor:
    x = embed(*shape_and_dtype, device if place == "device" else "cpu", **options)
    return pinned(x) if place == "pinned" and torch.device(device).type != "cpu" else x


def make_planes(
    device: torch.device | str,
    shapes: Sequence[tuple[int, ...]],
    *,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    order: str = "NHD",
    place: str = "device",
    padding: tuple[int, ...] | None = None,
    offset: int = 0,
) -> list[Tensor]:
    """Planes in memory of their own. Plane p has dtype p of the dtypes, which are used in turn."""
    at = {"order": ORDERS[order], "padding": padding, "offset": offset}
    return [_placed(place, device, shape, dtypes[p % len(dtypes)], **at) for p, shape in enumerate(shapes)]


def staged_arguments(
    device: torch.device | str = "cpu",
    *,
    unpack: bool = False,
    planes: int = 4,
    blocks: int = 9,
    block_size: int = 4,
    heads: int = 3,
    head_size: int = 8,
    ids: Sequence[int] = (7, 2, -1, 0, 8),
    chunk: int = 4,
    spare_rows: int = 1,
    num_tokens: int = -1,
    head_start: int = 0,
    staged_heads: int | None = None,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16,),
    order: str = "NHD",
    staging: str = "dense",
    place: str = "device",
    ids_place: str = "device",
    index_dtype: torch.dtype = torch.int64,
    cache_options: dict[str, object] | None = None,
    staging_options: dict[str, object] | None = None,
) -> Arguments:
    """A good call of pack_layers, or of unpack_layers. Ids that no token needs are bad."""
    shape = (blocks, block_size, heads, head_size)
    caches = make_planes(device, [shape] * planes, dtypes=dtypes, order=order, **(cache_options or {}))
    listed = torch.tensor(ids, dtype=index_dtype).reshape(-1)
    if num_tokens >= 0:
        needed = -(-num_tokens // block_size)
        listed[needed:] = torch.tensor(BAD_IDS, dtype=index_dtype)[torch.randint(2, listed[needed:].shape)]
    tokens = num_tokens if num_tokens >= 0 else len(listed) * block_size
    rows = -(-tokens // chunk) + spare_rows
    staged = heads - head_start if staged_heads is None else staged_heads
    at = {"order": STAGING_ORDERS[staging], **(staging_options or {})}
    buffer = _placed(place, device, (rows, chunk, planes, staged, head_size), dtypes[0], **at)
    rest = {"block_ids": listed.to(device if ids_place == "device" else "cpu")}
    ends = {"num_tokens": num_tokens, "head_start": head_start}
    if unpack:
        return {"staging": buffer, "caches": caches, **rest, **ends}
    return {"caches": caches, **rest, "staging": buffer, **ends}


def pack_arguments(device: torch.device | str = "cpu", **options: object) -> Arguments:
    return staged_arguments(device, **options)


def unpack_arguments(device: torch.device | str = "cpu", **options: object) -> Arguments:
    return staged_arguments(device, unpack=True, **options)


# Pairs of slots; none of dst twice, and none of them both read and written.
PAIRS = ((3, 1), (0, 17), (35, 2), (-1, 5), (4, -(2**31)), (3, 30), (11, 9))
# Chains, a cycle, a token that stays, and one that is read twice.
OVERLAPPING = ((5, 4), (6, 5), (7, 6), (10, 20), (20, 10), (12, 12), (7, 13), (-1, 14), (31, 7))


def random_pairs(count: int, src_slots: int, dst_slots: int) -> list[tuple[int, int]]:
    """No slot of dst is in two pairs."""
    reads, writes = torch.randint(src_slots, (count,)).tolist(), torch.randperm(dst_slots)[:count].tolist()
    return list(zip(reads, writes, strict=True))


def move_arguments(
    device: torch.device | str = "cpu",
    *,
    pairs: Sequence[tuple[int, int]] = PAIRS,
    src_blocks: int = 9,
    dst_blocks: int = 6,
    block_sizes: tuple[int, int] = (4, 6),
    tokens: Sequence[tuple[int, ...]] = ((3, 8), (3, 8), (5,), (2, 3, 4)),
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.bfloat16, torch.uint8, torch.float32),
    same: bool = False,
    overlap: bool = False,
    src: str = "device",
    dst: str = "device",
    slots_place: str = "device",
    index_dtype: torch.dtype = torch.int64,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
) -> Arguments:
    """Plane p has tokens of shape p. With `same`, src and dst are one pool."""

    def planes(place: str, blocks: int, block_size: int, options: dict[str, object] | None) -> list[Tensor]:
        shapes = [(blocks, block_size, *token) for token in tokens]
        return [
            _placed(place, device, shape, dtypes[p % len(dtypes)], **(options or {})) for p, shape in enumerate(shapes)
        ]

    sources = planes(src, src_blocks, block_sizes[0], src_options)
    targets = sources if same else planes(dst, dst_blocks, block_sizes[1], dst_options)
    reads, writes = torch.tensor(pairs, dtype=index_dtype).reshape(-1, 2).t().contiguous()
    to = device if slots_place == "device" else "cpu"
    return {
        "src": sources,
        "dst": targets,
        "src_slots": reads.to(to),
        "dst_slots": writes.to(to),
        "overlap": overlap,
    }


def kept_positions(lengths: Sequence[int], kept: Sequence[int], starts: Sequence[int], rows: int) -> Tensor:
    """[rows, sum of kept]: for each sequence, increasing positions from its start on."""
    drawn = []
    for length, count, start in zip(lengths, kept, starts, strict=True):
        drawn.append(torch.stack([start + torch.randperm(length - start)[:count].sort().values for _ in range(rows)]))
    return torch.cat(drawn, 1) if drawn else torch.empty(rows, 0, dtype=torch.int64)


def compact_arguments(
    device: torch.device | str = "cpu",
    *,
    lengths: Sequence[int] = (17, 5, 0, 30),
    kept: Sequence[int] = (6, 5, 0, 13),
    starts: Sequence[int] | None = None,
    first: int = 0,
    spare: int = 0,
    keep_dim: int = 1,
    groups: int = 2,
    head_sizes: Sequence[int] = (8, 8, 8, 1),
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.bfloat16, torch.uint8, torch.float32),
    blocks: int = 23,
    block_size: int = 4,
    heads: int = 3,
    order: str = "NHD",
    index_dtype: torch.dtype = torch.int64,
    spare_columns: int = 1,
    cache_options: dict[str, object] | None = None,
) -> Arguments:
    """Sequences of the given lengths in random blocks, of which none has two. Entries that nobody needs are bad.

    `first` elements of keep precede those of the first sequence, and `spare` follow the last.
    """
    caches = make_planes(
        device,
        [(blocks, block_size, heads, size) for size in head_sizes],
        dtypes=dtypes,
        order=order,
        **(cache_options or {}),
    )
    columns = max([-(-length // block_size) for length in lengths], default=0) + spare_columns
    table = torch.full((len(lengths), columns), BAD_IDS[0])
    free = torch.randperm(blocks)
    for row, length in zip(table, lengths, strict=True):
        needed = -(-length // block_size)
        row[:needed], free = free[:needed], free[needed:]
    begins = [0] * len(lengths) if starts is None else list(starts)
    rows = (1, heads, groups * heads)[keep_dim - 1]
    positions = kept_positions(lengths, kept, begins, rows)
    positions = torch.nn.functional.pad(positions, (first, spare), value=BAD_IDS[0])
    shape = ((-1,), (heads, -1), (groups, heads, -1))[keep_dim - 1]
    keep = positions.reshape(*shape[:-1], positions.shape[-1])
    bounds = torch.tensor([0, *kept]).cumsum(0) + first
    return {
        "caches": caches,
        "block_table": table.to(device, index_dtype),
        "keep": keep.to(device, index_dtype),
        "keep_offsets": bounds.to(device, index_dtype),
        "dst_start": None if starts is None else torch.tensor(begins).to(device, index_dtype),
    }


PACK, UNPACK, MOVE, COMPACT = "pack_layers", "unpack_layers", "move_tokens", "compact_cache"
# Other contents have as many ids, slots and bounds. Those of lists on the CPU stay, because a graph keeps them.
OTHERS = {"others": {"ids": (0, 8, 3, -1, 5)}}
LARGER_STAGED = {"blocks": 300, "ids": tuple(range(5, 280, 3)), "head_size": 128}
LARGER_MOVE = {
    "pairs": tuple((7 * i, (5 * i) % 6000) for i in range(1000)),
    "src_blocks": 2000,
    "dst_blocks": 1000,
    "tokens": ((8, 64), (8, 64), (500,), (2, 3, 40)),
}
LARGER_COMPACT = {"lengths": (900, 40, 0, 3000), "kept": (300, 40, 0, 1000), "blocks": 1100}
SOME_HEADS = {"head_start": 1, "staged_heads": 2, "num_tokens": 18, "chunk": 6, "order": "HND", "staging": "token_last"}
SAME_POOL = {"pairs": OVERLAPPING, "same": True, "overlap": True}
STARTS = {"starts": (2, 0, 3, 1), "kept": (6, 5, 0, 13), "lengths": (17, 5, 3, 30), "index_dtype": torch.int32}

CALLS = {
    "pack": Call(PACK, pack_arguments, {}, **OTHERS, larger=LARGER_STAGED, uses_all=True),
    "pack-some_heads": Call(PACK, pack_arguments, SOME_HEADS | {"index_dtype": torch.int32}),
    "pack-nothing": Call(PACK, pack_arguments, {"ids": ()}),
    "unpack": Call(UNPACK, unpack_arguments, {}, **OTHERS, larger=LARGER_STAGED, uses_all=True),
    "unpack-some_heads": Call(UNPACK, unpack_arguments, SOME_HEADS | {"index_dtype": torch.int32}),
    "unpack-nothing": Call(UNPACK, unpack_arguments, {"num_tokens": 0}),
    "move": Call(MOVE, move_arguments, {}, larger=LARGER_MOVE, uses_all=True),
    "move-overlap": Call(MOVE, move_arguments, SAME_POOL | {"index_dtype": torch.int32}),
    "move-nothing": Call(MOVE, move_arguments, {"pairs": ()}),
    "compact": Call(COMPACT, compact_arguments, {}, larger=LARGER_COMPACT),
    "compact-starts": Call(
        COMPACT,
        compact_arguments,
        STARTS | {"keep_dim": 3, "first": 3, "spare": 2},
        larger={"starts": (1, 0, 4, 100), "lengths": (900, 40, 4, 3000), "kept": (300, 40, 0, 1000), "blocks": 1100},
        uses_all=True,
    ),
    "compact-heads": Call(COMPACT, compact_arguments, {"keep_dim": 2, "order": "HND"}),
    "compact-no_sequences": Call(COMPACT, compact_arguments, {"lengths": (), "kept": ()}),
}
# On a CPU these are calls within its memory.
GPU_CALLS = {
    "pack-pinned": Call(PACK, pack_arguments, {"place": "pinned"}, **OTHERS),
    "unpack-pinned": Call(UNPACK, unpack_arguments, {"place": "pinned"}, **OTHERS),
    "pack-pinned_cpu_ids": Call(PACK, pack_arguments, {"place": "pinned", "ids_place": "cpu"}),
    "unpack-cpu_ids": Call(UNPACK, unpack_arguments, {"ids_place": "cpu"}),
    "move-to_pinned": Call(MOVE, move_arguments, {"dst": "pinned"}),
    "move-from_pinned": Call(MOVE, move_arguments, {"src": "pinned", "slots_place": "cpu"}),
    "move-overlap_cpu_slots": Call(MOVE, move_arguments, SAME_POOL | {"slots_place": "cpu"}),
}
# Those that are errors unless tensors are in pinned memory.
PINNED_ONLY = tuple(name for name in GPU_CALLS if "pinned" in name)
