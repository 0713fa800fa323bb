"""Sequences out of the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import bad_index, bits, dequantise, fp8_format
from .tiles import NOPE, ROPE_BYTES, TILE


def check_bounds(argument: str, bounds: Sequence[int], num_rows: float) -> None:
    """Sequence bounds do not decrease and do not leave the output. Those that do raise, whatever `bad_indices` is."""
    for s, bound in enumerate(bounds):
        if not (bounds[s - 1] if s else 0) <= bound <= num_rows:
            raise bad_index(argument, s, bound)


def sequence_rows(
    block_table: Tensor,
    bounds: Sequence[int],
    seq_starts: Tensor | None,
    num_blocks: int,
    block_size: int,
    bad_indices: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output rows, and the block and the offset in it that each is read from.

    Row i belongs to the sequence s with bounds[s] <= i < bounds[s + 1], and is position i - bounds[s] + seq_starts[s]
    of it. Rows whose logical block lies past the table's width are not among them; other entries of the table than
    those needed are not looked at.
    """
    table, blocks_per_sequence = block_table.tolist(), block_table.shape[1]
    starts = [0] * len(table) if seq_starts is None else seq_starts.tolist()
    found = []
    for s, start in enumerate(starts):
        if start < 0:
            raise bad_index("seq_starts", s, start)
        for row in range(bounds[s], bounds[s + 1]):
            logical_block, offset = divmod(row - bounds[s] + start, block_size)
            if logical_block >= blocks_per_sequence:
                break  # as are all later rows of the sequence
            block = table[s][logical_block]
            if 0 <= block < num_blocks:
                found.append((row, block, offset))
            elif bad_indices == "raise":
                raise bad_index("block_table", (s, logical_block), block)
    rows, blocks, offsets = torch.tensor(found, dtype=torch.int64).reshape(-1, 3).unbind(1)
    return rows, blocks, offsets


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
    bounds = cu_seq_lens.tolist()
    check_bounds("cu_seq_lens", bounds, dst.shape[0])
    rows, blocks, offsets = sequence_rows(block_table, bounds, seq_starts, *src_cache.shape[:2], bad_indices)
    bits(dst)[rows] = bits(src_cache)[blocks, offsets].to(dst.device)


def gather_and_maybe_dequant_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    token_to_seq: Tensor,
    num_tokens: int,
    kv_cache_dtype: str,
    scale: Tensor,
    seq_starts: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """As cp_gather_cache, of entries [E], and dst[i] = src_cache[...] * scale if the cache is fp8.

    Rows from num_tokens on are left as they were, and what only they would need is not looked at. num_tokens may be
    larger than cu_seq_lens[S]. token_to_seq is not used: cu_seq_lens says it all.
    """
    bounds = cu_seq_lens.tolist()
    check_bounds("cu_seq_lens", bounds, math.inf)
    bounds = [min(bound, num_tokens) for bound in bounds]
    rows, blocks, offsets = sequence_rows(block_table, bounds, seq_starts, *src_cache.shape[:2], bad_indices)
    entries = bits(src_cache)[blocks, offsets]
    format = fp8_format(kv_cache_dtype, src_cache.dtype, e4m3_of_bytes)
    if format is None:
        bits(dst)[rows] = entries.to(dst.device)
    else:
        dst[rows] = dequantise(entries, scale, format).to(dst)


def cp_gather_and_upconvert_fp8_kv_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    workspace_starts: Tensor,
    batch_size: int,
    seq_starts: Tensor | None = None,
    host_cache: Tensor | None = None,
    host_row_ids: Tensor | None = None,
    device_row_ids: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Entries of the format fp8_ds_mla -> bfloat16 [total, 576]: bfloat16(e4m3 * tile scale), then bits as they came.

    Sequence s owns the rows from workspace_starts[s] to where the next one starts, the last sequence to the end.
    With host rows the table's blocks are logical ones: row r = block * B + offset is row device_row_ids[r] of
    src_cache, all blocks in one row of rows; or else, if that is negative, row host_row_ids[r] of host_cache; or else,
    if both are negative, nothing, and the output is left as it was.
    """
    num_blocks, block_size = src_cache.shape[:2]
    num_slots = num_blocks * block_size
    bounds = [*workspace_starts.tolist()[:batch_size], dst.shape[0]]
    check_bounds("workspace_starts", bounds, dst.shape[0])
    num_logical = num_blocks if device_row_ids is None else len(device_row_ids) // block_size
    places = sequence_rows(block_table, bounds, seq_starts, num_logical, block_size, bad_indices)

    found = []  # (row, entry)
    for row, block, offset in zip(*(x.tolist() for x in places)):
        slot = r = block * block_size + offset
        if device_row_ids is not None:
            slot = int(device_row_ids[r])
        if slot >= num_slots:
            if bad_indices == "raise":
                raise bad_index("device_row_ids", r, slot)
        elif slot >= 0:
            found.append((row, src_cache.view(torch.uint8)[slot // block_size, slot % block_size]))
        elif (host_row := int(host_row_ids[r])) >= len(host_cache):
            if bad_indices == "raise":
                raise bad_index("host_row_ids", r, host_row)
        elif host_row >= 0:
            found.append((row, host_cache[host_row]))

    if not found:
        return
    written, entries = [row for row, _ in found], torch.stack([entry.cpu() for _, entry in found])
    nope, scales, rope = (part.contiguous() for part in entries.split([NOPE, NOPE // TILE * 4, ROPE_BYTES], 1))
    format = fp8_format("fp8", src_cache.dtype, e4m3_of_bytes)
    tiles = dequantise(nope.unflatten(1, (-1, TILE)), scales.view(torch.float32)[..., None], format)
    dst[written, :NOPE] = tiles.flatten(1).to(dst)
    bits(dst)[written, NOPE:] = rope.view(torch.int16).to(dst.device)
