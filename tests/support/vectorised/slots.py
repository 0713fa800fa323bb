"""Slots of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.support.vectorised.gathers import check_bounds

__all__ = ["compute_slot_mapping"]


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
    if not slot_mappings:
        return
    bounds = cu_query_lens.cpu().long()
    check_bounds("cu_query_lens", bounds, len(slot_mappings[0]))
    sequence = torch.arange(len(bounds) - 1).repeat_interleave(bounds[1:] - bounds[:-1])
    tokens = torch.arange(len(sequence)) + bounds[0]
    rows = sequence if table_rows is None else table_rows.cpu().long()[sequence]
    position = positions.cpu().long()[tokens]
    known = (rows >= 0) & (position >= 0)
    sequence, tokens, rows, position = (x[known] for x in (sequence, tokens, rows, position))
    results = []
    for g, (table, block_size) in enumerate(zip(block_tables, block_sizes, strict=True)):
        column, in_column = position // (block_size * cp_world), position % (block_size * cp_world)
        piece = in_column // cp_interleave
        ours = piece % cp_world == cp_rank
        local = piece // cp_world * cp_interleave + in_column % cp_interleave
        no_row, no_column = rows >= table.shape[0], column >= table.shape[1]
        blocks = torch.zeros_like(position)
        here = ours & ~no_row & ~no_column
        blocks[here] = table.cpu().long()[rows[here], column[here]]
        too_large = blocks > (torch.iinfo(slot_mappings[g].dtype).max - local) // block_size
        bad = ours & (no_row | no_column | too_large)
        if bad_indices == "raise" and bad.any():
            at = int(bad.nonzero()[0])
            if no_row[at]:
                name = "cu_query_lens" if table_rows is None else "table_rows"
                raise IndexError(f"{name}[{sequence[at]}] is {rows[at]}")
            if no_column[at]:
                raise IndexError(f"positions[{tokens[at]}] is {position[at]}")
            raise IndexError(f"block_tables[{g}][{(int(rows[at]), int(column[at]))}] is {blocks[at]}")
        slots = torch.full(slot_mappings[g].shape, -1)
        stored = ours & ~bad & (blocks >= 0)
        slots[tokens[stored]] = (blocks * block_size + local)[stored]
        results.append(slots)
    for mapping, slots in zip(slot_mappings, results, strict=True):
        mapping.copy_(slots)
