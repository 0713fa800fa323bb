"""Copies the entries of sequences from a paged cache to consecutive rows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..formats import DS_MLA_ENTRY
from .formats import bad_index, bits, dequantise, e4m3_format, fp8_format
from .tiles import NOPE, TILE

__all__ = [
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "gather_and_maybe_dequant_cache",
    "gather_kv_cache",
]


def check_bounds(argument: str, bounds: Sequence[int], num_rows: float) -> None:
    """Raises IndexError, in both modes of bad_indices, if the bounds are negative, decrease, or exceed num_rows."""
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
    """Returns output rows, and the block and the offset that each row is read from.

    Row i belongs to the sequence s with bounds[s] <= i < bounds[s + 1], and holds its position
    i - bounds[s] + seq_starts[s]. Rows whose block lies past the width of the table are left out. Entries of the
    table that no row needs are not checked.
    """
    table, blocks_per_sequence = block_table.tolist(), block_table.shape[1]
    starts = [0] * len(table) if seq_starts is None else seq_starts.tolist()
    row_sources = []
    for s, start in enumerate(starts):
        if start < 0:
            raise bad_index("seq_starts", s, start)
        for row in range(bounds[s], bounds[s + 1]):
            column, offset = divmod(row - bounds[s] + start, block_size)
            if column >= blocks_per_sequence:
                break  # the blocks of all later rows lie past the width, too
            block = table[s][column]
            if 0 <= block < num_blocks:
                row_sources.append((row, block, offset))
            elif bad_indices == "raise":
                raise bad_index("block_table", (s, column), block)
    rows, blocks, offsets = torch.tensor(row_sources, dtype=torch.int64).reshape(-1, 3).unbind(1)
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
    """Copies dst[i] = src_cache[block_table[s, p // B], p % B], bit for bit; p = i - cu_seq_lens[s] + seq_starts[s].

    src_cache [N, B, ...]; dst [total, ...]; block_table [S, blocks of a sequence]; cu_seq_lens [S + 1]; seq_starts [S].
    Row i belongs to the sequence s with cu_seq_lens[s] <= i < cu_seq_lens[s + 1]. Rows of no sequence, and rows whose
    block lies past the width of the table, keep their content. Bad sequence bounds and negative seq_starts raise
    an error in either mode of bad_indices.
    """
    bounds = cu_seq_lens.tolist()
    check_bounds("cu_seq_lens", bounds, dst.shape[0])
    num_blocks, block_size = src_cache.shape[:2]
    rows, blocks, offsets = sequence_rows(block_table, bounds, seq_starts, num_blocks, block_size, bad_indices)
    bits(dst)[rows] = bits(src_cache)[blocks, offsets].to(dst.device)


def _rows_of_heads(
    num_tokens: int,
    output: Tensor,
    blocks_and_sizes: tuple[int, int],
    block_table: Tensor,
    cu_seq_lens: Tensor,
    seq_starts: Tensor | None,
    bad_indices: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns sequence_rows() below num_tokens, or below the number of rows of the output if num_tokens is -1."""
    bounds = cu_seq_lens.tolist()
    check_bounds("cu_seq_lens", bounds, math.inf)
    num_tokens = len(output) if num_tokens == -1 else num_tokens
    bounds = [min(bound, num_tokens) for bound in bounds]
    return sequence_rows(block_table, bounds, seq_starts, *blocks_and_sizes, bad_indices)


def _put_heads(dst: Tensor, rows: Tensor, entries: Tensor, scale: Tensor | None, format: str | None) -> None:
    """Writes the bits of entries [tokens, H, D] or [tokens, E] to rows of dst, or entries * scale if they are codes."""
    if format is None:
        values = entries
    else:
        assert scale is not None  # an fp8 format needs its scale
        per_head = scale.reshape(-1)[:, None] if entries.dim() == 3 else scale
        values = bits(dequantise(entries, per_head, format).to(dst.dtype))
    bits(dst)[rows] = values.reshape(len(rows), *dst.shape[1:]).to(dst.device)


def gather_and_maybe_dequant_cache(
    src_cache: Tensor,
    dst: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    token_to_seq: Tensor | None,
    num_tokens: int,
    kv_cache_dtype: str,
    scale: Tensor | None,
    seq_starts: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Does what cp_gather_cache does for entries [E] or [H, D], with dst[i] = src_cache[...] * scale if it is fp8.

    scale has one element, or for entries [H, D] also H. dst [>=num_tokens, E], or for entries [H, D] [>=num_tokens, H,
    D] or [>=num_tokens, H * D]. Rows from num_tokens on keep their content, and indices that only these rows would need
    are not checked. num_tokens may exceed cu_seq_lens[S]; -1 stands for all rows of dst. token_to_seq is not read:
    cu_seq_lens determines the sequences.
    """
    num_blocks, block_size = src_cache.shape[:2]
    rows, blocks, offsets = _rows_of_heads(
        num_tokens, dst, (num_blocks, block_size), block_table, cu_seq_lens, seq_starts, bad_indices
    )
    format = fp8_format(kv_cache_dtype, src_cache.dtype, e4m3_of_bytes)
    _put_heads(dst, rows, bits(src_cache)[blocks, offsets], scale, format)


def _packed_values(value_cache: Tensor, blocks: Tensor, offsets: Tensor) -> Tensor:
    """Returns the bits of values [tokens, H, D] of a cache [N, H, D, B] or [N, H, B/x, D, x]."""
    if value_cache.dim() == 4:
        return bits(value_cache)[blocks, :, :, offsets]
    x = value_cache.shape[4]
    return bits(value_cache)[blocks, :, offsets // x, :, offsets % x]


def gather_kv_cache(
    key_cache: Tensor,
    value_cache: Tensor,
    key: Tensor,
    value: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    seq_starts: Tensor | None = None,
    num_tokens: int = -1,
    k_global_scale: Tensor | None = None,
    v_global_scale: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Does what gather_and_maybe_dequant_cache does for keys and values, in all layouts of the reshape_and_cache ops.

    key, value [>=num_tokens, H, D]; a num_tokens of -1 stands for all rows of key. Caches [N, B, H, D], whose D may
    differ; or key_cache [N, H, D/x, B, x] with value_cache [N, H, D, B] or [N, H, B/x, D, x].
    """
    is_packed = key_cache.dim() == 5
    num_blocks, block_size = len(key_cache), key_cache.shape[3 if is_packed else 1]
    rows, blocks, offsets = _rows_of_heads(
        num_tokens, key, (num_blocks, block_size), block_table, cu_seq_lens, seq_starts, bad_indices
    )
    if is_packed:
        keys = bits(key_cache)[blocks, :, :, offsets].flatten(2)
        values = _packed_values(value_cache, blocks, offsets)
    else:
        keys, values = bits(key_cache)[blocks, offsets], bits(value_cache)[blocks, offsets]
    format = fp8_format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    _put_heads(key, rows, keys, k_scale, format)
    _put_heads(value, rows, values, v_scale, format)


def _ds_mla_entry(
    logical_slot: int,
    src_cache: Tensor,
    host_cache: Tensor | None,
    host_row_ids: Tensor | None,
    device_row_ids: Tensor | None,
    bad_indices: str,
) -> Tensor | None:
    """Returns the 656 bytes of an entry of the logical cache, given its logical slot.

    Returns None if there is no such entry, or if its index is bad and bad_indices is "skip".
    """
    num_blocks, block_size = src_cache.shape[:2]
    slot = logical_slot if device_row_ids is None else int(device_row_ids[logical_slot])
    if 0 <= slot < num_blocks * block_size:
        return src_cache.view(torch.uint8)[slot // block_size, slot % block_size]
    if slot >= 0:
        if bad_indices == "raise":
            raise bad_index("device_row_ids", logical_slot, slot)
        return None
    assert host_cache is not None  # all three host arguments are given or none
    assert host_row_ids is not None
    host_row = int(host_row_ids[logical_slot])
    if host_row >= len(host_cache) and bad_indices == "raise":
        raise bad_index("host_row_ids", logical_slot, host_row)
    return host_cache[host_row] if 0 <= host_row < len(host_cache) else None


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
    """Converts fp8_ds_mla entries to rows [total, 576]: bfloat16(e4m3 * tile scale), then the bits of the rotary key.

    Sequence s owns the rows from workspace_starts[s] to workspace_starts[s + 1]; the last sequence owns all rows to the
    end. If host_cache is given, block_table holds blocks of a logical cache. The entry of the logical slot
    r = block * B + offset is in slot device_row_ids[r] of src_cache if that is not negative, else in row
    host_row_ids[r] of host_cache if that is not negative. If both are negative, the output row keeps its content.
    """
    num_blocks, block_size = src_cache.shape[:2]
    bounds = [*workspace_starts.tolist()[: len(block_table)], dst.shape[0]]
    check_bounds("workspace_starts", bounds, dst.shape[0])
    num_logical = num_blocks if device_row_ids is None else len(device_row_ids) // block_size
    sources = sequence_rows(block_table, bounds, seq_starts, num_logical, block_size, bad_indices)

    written, entries = [], []
    for row, block, offset in zip(*(x.tolist() for x in sources), strict=True):
        logical_slot = block * block_size + offset
        entry = _ds_mla_entry(logical_slot, src_cache, host_cache, host_row_ids, device_row_ids, bad_indices)
        if entry is not None:
            written.append(row)
            entries.append(entry.cpu())
    if not entries:
        return
    parts = torch.stack(entries).split(DS_MLA_ENTRY.part_bytes, 1)
    nope, scales, rope = (part.contiguous() for part in parts)
    format = e4m3_format(src_cache.dtype, e4m3_of_bytes)
    tiles = dequantise(nope.unflatten(1, (-1, TILE)), scales.view(torch.float32)[..., None], format)
    dst[written, :NOPE] = tiles.flatten(1).to(dst)
    bits(dst)[written, NOPE:] = rope.view(torch.int16).to(dst.device)
