"""Good calls of the ops that compute slots."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.calls.gather import BAD_BLOCKS
from tests.support.tensors import embed


def _block_table(
    of_sequences: Sequence[Tensor], rows_used: Sequence[int], num_rows: int, span: int, spare: int, blocks: int
) -> Tensor:
    """A table whose columns stand for `span` positions, given the positions and the row of each sequence."""
    most = max([0, *(int(x.max()) + 1 for x in of_sequences if len(x))])
    table = torch.tensor(BAD_BLOCKS)[torch.randint(len(BAD_BLOCKS), (num_rows, max(0, -(-most // span) + spare)))]
    for row, x in zip(rows_used, of_sequences, strict=True):
        if row >= 0 and len(x):
            needed = slice(0, int(x.max()) // span + 1)
            table[row, needed] = torch.randint(blocks, table[row, needed].shape)
    return table


def slots_arguments(
    device: torch.device | str = "cpu",
    *,
    lengths: Sequence[int] = (5, 0, 1, 40, 1),
    starts: Sequence[int] | None = None,
    block_sizes: Sequence[int] = (16, 64),
    rows: int | None = None,
    table_rows: Sequence[int] | None = None,
    first_token: int = 2,
    padding: int = 3,
    surplus: int = 4,
    cp_world: int = 1,
    cp_rank: int = 0,
    cp_interleave: int = 1,
    blocks: int = 1000,
    spare_columns: int = 1,
    share_of_negatives: float = 0.0,
    shuffled: bool = False,
    table_dtype: torch.dtype = torch.int32,
    slot_dtype: torch.dtype = torch.int64,
    index_dtype: torch.dtype = torch.int32,
    table_options: dict[str, object] | None = None,
) -> Arguments:
    """A good call. Entries of the tables that no token of any rank needs, and unused positions, are bad."""
    bounds = list(itertools.accumulate(lengths, initial=first_token))
    starts = torch.randint(100, (len(lengths),)).tolist() if starts is None else starts
    of_sequences = [torch.arange(n) + start for n, start in zip(lengths, starts, strict=True)]
    if shuffled:  # positions of a sequence in any order, some twice
        of_sequences = [x[torch.randint(max(len(x), 1), x.shape)] for x in of_sequences]
    num_tokens = bounds[-1] + padding
    positions = torch.full((num_tokens + surplus,), 2**31 - 1)
    for begin, x in zip(bounds, of_sequences, strict=False):
        positions[begin : begin + len(x)] = x
    positions[torch.rand(positions.shape) < share_of_negatives] = -5
    rows_used = list(range(len(lengths))) if table_rows is None else list(table_rows)
    num_rows = max([-1, *rows_used]) + 1 if rows is None else rows
    tables = []
    for block_size in block_sizes:
        table = _block_table(of_sequences, rows_used, num_rows, block_size * cp_world, spare_columns, blocks)
        table[torch.rand(table.shape) < share_of_negatives] = -1
        tables.append(embed(table.shape, table_dtype, device, **(table_options or {})))
        tables[-1].copy_(table)
    return {
        "block_tables": tables,
        "cu_query_lens": torch.tensor(bounds, dtype=index_dtype, device=device),
        "positions": positions.to(device, index_dtype),
        "slot_mappings": [embed((num_tokens,), slot_dtype, device) for _ in block_sizes],
        "block_sizes": list(block_sizes),
        "table_rows": None if table_rows is None else torch.tensor(table_rows, dtype=index_dtype, device=device),
        "cp_world": cp_world,
        "cp_rank": cp_rank,
        "cp_interleave": cp_interleave,
    }


SLOTS = "compute_slot_mapping"
SAME_STARTS = {"starts": (0, 7, 99, 30, 15)}  # the same in all calls, so that the tables have one width
ROWS = SAME_STARTS | {"table_rows": (4, 2, -1, 0, 1)}
LARGER = {
    "larger": {"lengths": (3000, 0, 1, 1, 5000), "starts": (0, 7, 99, 30, 15)},
    "others": {"lengths": (1, 40, 0, 5, 1), "starts": (99, 30, 15, 0, 7)},
}

CALLS = {
    "slots": Call(SLOTS, slots_arguments, SAME_STARTS, **LARGER),
    "slots-rows": Call(SLOTS, slots_arguments, ROWS | {"rows": 6, "index_dtype": torch.int64}, **LARGER, uses_all=True),
    "slots-ranks": Call(
        SLOTS,
        slots_arguments,
        SAME_STARTS | {"cp_world": 4, "cp_rank": 2, "cp_interleave": 8, "slot_dtype": torch.int32},
        **LARGER,
    ),
    "slots-no_sequences": Call(SLOTS, slots_arguments, {"lengths": (), "starts": ()}),
    "slots-no_groups": Call(SLOTS, slots_arguments, {"block_sizes": ()}),
    "slots-no_tokens": Call(
        SLOTS, slots_arguments, {"lengths": (0, 0), "starts": (0, 0), "first_token": 0, "padding": 0}
    ),
}
