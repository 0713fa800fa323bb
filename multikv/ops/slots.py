"""Slots: where the tokens of a batch lie in paged caches, computed from the block tables of their sequences."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["compute_slot_mapping"]

_compute_slot_mapping = explaining(torch.ops.multikv.compute_slot_mapping.default)


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
) -> None:
    """Computes the slot of each token, for several groups of caches in one launch.

    Layers whose caches share a block table and a block size are a group. For a token i of sequence s at position
    `p = positions[i]`, group g and its block size B:

        slot_mappings[g][i] = block_tables[g][r, p // B] * B + p % B, where r = s, or table_rows[s] if that is given

    Tokens without a slot get -1: those of no sequence, of a sequence with a negative table row, with a negative
    position, or with a negative block id.

    **Context parallelism** spreads the positions of a sequence over cp_world ranks, in pieces of cp_interleave
    positions. A column of the block table then covers `B * cp_world` positions, of which each rank holds B, in a block
    of its own. With `o = p % (B * cp_world)`, the position belongs to rank `o // cp_interleave % cp_world`; tokens of
    other ranks get -1. The slot is `block_tables[g][r, p // (B * cp_world)] * B + local`, where `local = o //
    (cp_interleave * cp_world) * cp_interleave + o % cp_interleave`. Groups that are not spread over ranks need a call
    of their own.

    Args:
        block_tables: for each group [num_rows, columns], int32 or int64. All have the same dtype and number of rows.
            Entries that no token of this rank needs are not checked.
        cu_query_lens: [num_sequences + 1], int32 or int64: the first token of each sequence, and the end of the last
            one. Not decreasing, not negative, at most num_tokens.
        positions: [>= num_tokens], int32 or int64: the position of each token in its sequence.
        slot_mappings: for each group [num_tokens], int32 or int64, written. All have the same dtype and size.
        block_sizes: for each group the number of slots in a block, a multiple of cp_interleave.
        table_rows: [num_sequences], int32 or int64: the row of the block tables of each sequence; negative for a
            sequence without blocks. None: row s for sequence s.
        cp_world: number of ranks.
        cp_rank: rank of the caller.
        cp_interleave: number of neighbouring positions that belong to one rank.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride or value.
        IndexError: a bound is out of range, or for a token of this rank the block tables lack the row or the column, or
            the slot does not fit the dtype of slot_mappings (on a GPU only if indices are checked; such a token gets
            -1). Whether a cache has the block is checked by the op that uses the slot.

    Example:
        >>> block_table = torch.tensor([[3, 7], [5, 0]], dtype=torch.int32)
        >>> positions = torch.tensor([14, 15, 16, 4])  # three tokens of sequence 0, one of sequence 1
        >>> slots = torch.empty(4, dtype=torch.int64)
        >>> multikv.compute_slot_mapping([block_table], torch.tensor([0, 3, 4]), positions, [slots], [16])
        >>> slots
        tensor([ 62,  63, 112,  84])
    """
    _compute_slot_mapping(
        block_tables,
        cu_query_lens,
        positions,
        slot_mappings,
        block_sizes,
        table_rows,
        cp_world,
        cp_rank,
        cp_interleave,
    )
