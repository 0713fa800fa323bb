"""The slots of tokens, computed from the block tables of their sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .formats import bad_index
from .gather import check_bounds

__all__ = ["compute_slot_mapping"]


class _BadIndexError(Exception):
    """An index that is out of range. The argument is "row" or "table" if its name depends on the call."""

    def __init__(self, argument: str, subscript: object, index: int) -> None:
        self.argument, self.subscript, self.index = argument, subscript, index


class _Ranks(NamedTuple):
    """How context parallelism spreads the positions of a sequence, and the rank of the caller."""

    world: int
    rank: int
    interleave: int


class _Token(NamedTuple):
    """A token of a sequence, and the row of the block tables that the sequence has."""

    number: int
    position: int
    row: int


class _Table(NamedTuple):
    """The block table of a group, and the largest slot that fits the dtype of the group's slots."""

    rows: list[list[int]]
    num_columns: int
    largest_slot: int


def _slot(token: _Token, table: _Table, block_size: int, ranks: _Ranks) -> int:
    """Returns the slot of a token, or -1 if it has none on this rank."""
    column, in_column = divmod(token.position, block_size * ranks.world)
    piece, in_piece = divmod(in_column, ranks.interleave)
    if token.row < 0 or token.position < 0 or piece % ranks.world != ranks.rank:
        return -1
    if token.row >= len(table.rows):
        raise _BadIndexError("row", token.number, token.row)
    if column >= table.num_columns:
        raise _BadIndexError("positions", token.number, token.position)
    block = table.rows[token.row][column]
    slot = block * block_size + piece // ranks.world * ranks.interleave + in_piece
    if slot > table.largest_slot:
        raise _BadIndexError("table", (token.row, column), block)
    return slot if block >= 0 else -1


def compute_slot_mapping(
    block_tables: Sequence[Tensor],
    cu_query_lens: Tensor,
    positions: Tensor,
    slot_mappings: Sequence[Tensor],
    block_sizes: Sequence[int],
    table_rows: Tensor | None = None,
    cp_world: int = 1,
    cp_rank: int = 0,
    cp_interleave: int = 1,
    *,
    bad_indices: str = "raise",
) -> None:
    """Computes slot_mappings[g][i] = block_tables[g][r, column] * B + offset for the tokens of this rank, else -1.

    Token i belongs to the sequence s with cu_query_lens[s] <= i < cu_query_lens[s + 1]; r is s, or table_rows[s]. The
    sequence's positions are spread over cp_world ranks in pieces of cp_interleave, so that a column stands for
    B * cp_world positions. Tokens of no sequence, and those with a negative row, position or block, get -1. Bad
    sequence bounds raise an error in either mode of bad_indices.
    """
    if not slot_mappings:
        return
    bounds, all_positions = cu_query_lens.tolist(), positions.tolist()
    check_bounds("cu_query_lens", bounds, len(slot_mappings[0]))
    rows = list(range(len(bounds) - 1)) if table_rows is None else table_rows.tolist()
    ranks = _Ranks(cp_world, cp_rank, cp_interleave)
    results = []
    for g, (block_table, block_size) in enumerate(zip(block_tables, block_sizes, strict=True)):
        largest_slot = torch.iinfo(slot_mappings[g].dtype).max
        table = _Table(block_table.tolist(), block_table.shape[1], largest_slot)
        slots = [-1] * len(slot_mappings[g])
        for s, row in enumerate(rows):
            for i in range(bounds[s], bounds[s + 1]):
                try:
                    slots[i] = _slot(_Token(i, all_positions[i], row), table, block_size, ranks)
                except _BadIndexError as bad:
                    if bad_indices == "raise":
                        names = {"table": f"block_tables[{g}]", "row": "table_rows"}
                        if table_rows is None:
                            names["row"] = "cu_query_lens"
                        subscript = s if bad.argument == "row" else bad.subscript
                        raise bad_index(names.get(bad.argument, bad.argument), subscript, bad.index) from None
        results.append(slots)
    for mapping, slots in zip(slot_mappings, results, strict=True):
        mapping.copy_(torch.tensor(slots, dtype=mapping.dtype))
