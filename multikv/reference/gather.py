"""Sequences out of the cache."""

from __future__ import annotations

from torch import Tensor

from .formats import bad_index, bits


def cp_gather_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    batch_size: int,
    seq_starts: Tensor | None = None,
    *,
    bad_indices: str = "raise",
) -> None:
    """dst[i] = src_cache[block_table[s, p // B], p % B], with p = i - cu_seq_lens[s] + seq_starts[s]. Copies bits.

    src_cache [N, B, ...]; dst [total, ...]; block_table [S, blocks of a sequence]; cu_seq_lens [S + 1]; seq_starts [S].
    Row i belongs to the sequence s with cu_seq_lens[s] <= i < cu_seq_lens[s + 1]. Rows of no sequence, and rows whose
    logical block lies past the table's width, are left as they were. Bad sequence bounds raise in either mode.
    """
    num_blocks, block_size = src_cache.shape[:2]
    blocks_per_sequence = block_table.shape[1]
    table, bounds = block_table.tolist(), cu_seq_lens.tolist()
    starts = [0] * batch_size if seq_starts is None else seq_starts.tolist()
    for s, bound in enumerate(bounds):
        if not (bounds[s - 1] if s else 0) <= bound <= dst.shape[0]:
            raise bad_index("cu_seq_lens", s, bound)

    copies = []  # (row, block, offset)
    for s in range(batch_size):
        if starts[s] < 0:
            raise bad_index("seq_starts", s, starts[s])
        for row in range(bounds[s], bounds[s + 1]):
            logical_block, offset = divmod(row - bounds[s] + starts[s], block_size)
            if logical_block >= blocks_per_sequence:
                continue
            block = table[s][logical_block]
            if 0 <= block < num_blocks:
                copies.append((row, block, offset))
            elif bad_indices == "raise":
                raise bad_index("block_table", (s, logical_block), block)

    source, output = bits(src_cache), bits(dst)
    for row, block, offset in copies:
        output[row] = source[block, offset].to(output.device)
