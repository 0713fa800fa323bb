"""Good calls of the ops that read sequences."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import torch

from helpers import Arguments, embed

# No token needs these blocks, so nobody may look at them.
BAD_BLOCKS = (2**31 - 1, -(2**31), -1, 1_000_000)


def gather_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    entry: Sequence[int] = (2, 64),
    lengths: Iterable[int] = (5, 0, 16, 33),
    starts: Sequence[int] | None = None,
    blocks: int = 9,
    block_size: int = 16,
    spare_columns: int = 1,
    surplus_rows: int = 3,
    first_row: int = 0,
    index_dtype: torch.dtype = torch.int32,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
) -> Arguments:
    """A good call; the table's entries that no token needs are bad."""
    lengths = list(lengths)
    begins = [0] * len(lengths) if starts is None else list(starts)
    columns = max([-(-(b + n) // block_size) for b, n in zip(begins, lengths, strict=True)], default=0)
    columns = max(0, columns + spare_columns)
    bad = torch.tensor(BAD_BLOCKS)
    table = bad[torch.randint(len(bad), (len(lengths), columns))]
    for row, begin, length in zip(table, begins, lengths, strict=True):
        if length:
            needed = slice(begin // block_size, (begin + length - 1) // block_size + 1)
            row[needed] = torch.randint(blocks, row[needed].shape)
    bounds = list(itertools.accumulate(lengths, initial=first_row))
    return {
        "src_cache": embed((blocks, block_size, *entry), dtype, device, **(src_options or {})),
        "dst": embed((bounds[-1] + surplus_rows, *entry), dtype, device, **(dst_options or {})),
        "block_table": table.to(device, index_dtype),
        "cu_seq_lens": torch.tensor(bounds, dtype=index_dtype, device=device),
        "batch_size": len(lengths),
        "seq_starts": None if starts is None else torch.tensor(begins, dtype=index_dtype, device=device),
    }
