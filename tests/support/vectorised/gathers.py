"""Sequences out of the cache."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.support.vectorised.numbers import bits, dequantise, format_of, put, values_and_scales

__all__ = [
    "cp_gather_and_upconvert_fp8_kv_cache",
    "cp_gather_cache",
    "cp_gather_indexer_k_quant_cache",
    "gather_and_maybe_dequant_cache",
    "gather_kv_cache",
]


def check_bounds(argument: str, bounds: Tensor, num_rows: float) -> None:
    before = torch.cat([bounds.new_zeros(1), bounds[:-1]])
    bad = ((bounds < before) | (bounds > num_rows)).nonzero().flatten().tolist()
    if bad:
        raise IndexError(f"{argument}[{bad[0]}] is {bounds[bad[0]]}")


def _sequence_rows(
    block_table: Tensor,
    bounds: Tensor,
    seq_starts: Tensor | None,
    num_blocks: int,
    block_size: int,
    bad_indices: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output rows, and the block and the offset in it that each is read from."""
    num_sequences, columns = block_table.shape
    starts = torch.zeros(num_sequences, dtype=torch.int64) if seq_starts is None else seq_starts.cpu().long()
    if (starts < 0).any():
        s = int((starts < 0).nonzero()[0])
        raise IndexError(f"seq_starts[{s}] is {starts[s]}")
    lengths = bounds[1:] - bounds[:-1] if num_sequences else bounds.new_zeros(0)
    sequence = torch.arange(num_sequences).repeat_interleave(lengths)
    rows = torch.arange(len(sequence)) + (int(bounds[0]) if len(bounds) else 0)
    position = rows - bounds[sequence] + starts.clamp(max=2**62)[sequence]
    logical = position // block_size
    inside = logical < columns
    sequence, rows, position, logical = (x[inside] for x in (sequence, rows, position, logical))
    blocks = block_table.cpu().long()[sequence, logical]
    good = (blocks >= 0) & (blocks < num_blocks)
    if bad_indices == "raise" and not good.all():
        at = int((~good).nonzero()[0])
        raise IndexError(f"block_table[{(int(sequence[at]), int(logical[at]))}] is {blocks[at]}")
    return rows[good], blocks[good], position[good] % block_size


def _taken(cache: Tensor, blocks: Tensor, offsets: Tensor) -> Tensor:
    return bits(cache)[blocks.to(cache.device), offsets.to(cache.device)].cpu()


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
    bounds = cu_seq_lens.cpu().long()
    check_bounds("cu_seq_lens", bounds, dst.shape[0])
    rows, *places = _sequence_rows(block_table, bounds, seq_starts, *src_cache.shape[:2], bad_indices)
    put(dst, (rows,), _taken(src_cache, *places))


def _bounds_below(num_tokens: int, output: Tensor, cu_seq_lens: Tensor) -> Tensor:
    bounds = cu_seq_lens.cpu().long()
    check_bounds("cu_seq_lens", bounds, math.inf)
    return bounds.clamp(max=len(output) if num_tokens == -1 else num_tokens)


def _put_heads(dst: Tensor, rows: Tensor, entries: Tensor, scale: Tensor | None, format: str | None) -> None:
    if format is not None:
        per_head = scale.reshape(-1, 1) if entries.dim() == 3 else scale
        entries = bits(dequantise(entries, per_head, format).to(dst.dtype))
    put(dst, (rows,), entries.reshape(len(rows), *dst.shape[1:]))


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
    bounds = _bounds_below(num_tokens, dst, cu_seq_lens)
    rows, *places = _sequence_rows(block_table, bounds, seq_starts, *src_cache.shape[:2], bad_indices)
    format = format_of(kv_cache_dtype, src_cache.dtype, e4m3_of_bytes)
    _put_heads(dst, rows, _taken(src_cache, *places), scale, format)


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
    if key_cache.dim() == 5:  # as views [N, B, H, D/x, x] and [N, B, H, D] or [N, B/x, x, H, D]
        key_cache = key_cache.permute(0, 3, 1, 2, 4)
        value_cache = value_cache.permute(0, 3, 1, 2) if value_cache.dim() == 4 else value_cache.permute(0, 2, 4, 1, 3)
    bounds = _bounds_below(num_tokens, key, cu_seq_lens)
    rows, blocks, offsets = _sequence_rows(block_table, bounds, seq_starts, *key_cache.shape[:2], bad_indices)
    format = format_of(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    _put_heads(key, rows, _taken(key_cache, blocks, offsets).reshape(len(rows), *key.shape[1:]), k_scale, format)
    if value_cache.dim() == 5:
        x = value_cache.shape[2]
        at = (blocks, offsets // x, offsets % x)
        values = bits(value_cache)[tuple(i.to(value_cache.device) for i in at)].cpu()
    else:
        values = _taken(value_cache, blocks, offsets)
    _put_heads(value, rows, values, v_scale, format)


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
    num_blocks, block_size = src_cache.shape[:2]
    bounds = torch.cat([workspace_starts[: len(block_table)].cpu().long(), torch.tensor([dst.shape[0]])])
    check_bounds("workspace_starts", bounds, dst.shape[0])
    num_logical = num_blocks if device_row_ids is None else len(device_row_ids) // block_size
    rows, blocks, offsets = _sequence_rows(block_table, bounds, seq_starts, num_logical, block_size, bad_indices)
    if device_row_ids is not None:
        logical = blocks * block_size + offsets
        on_device, on_host = (x.cpu().long()[logical] for x in (device_row_ids, host_row_ids))
        from_host = on_device < 0
        _check_rows("device_row_ids", logical, on_device >= num_blocks * block_size, on_device, bad_indices)
        _check_rows("host_row_ids", logical, from_host & (on_host >= len(host_cache)), on_host, bad_indices)
        here = ~from_host & (on_device < num_blocks * block_size)
        there = from_host & (on_host >= 0) & (on_host < len(host_cache))
        host_rows, host_entries = rows[there], host_cache[on_host[there]]
        rows, blocks, offsets = rows[here], on_device[here] // block_size, on_device[here] % block_size
    entries = _taken(src_cache, blocks, offsets)
    if device_row_ids is not None:
        rows, entries = torch.cat([rows, host_rows]), torch.cat([entries, host_entries])
    nope, scales, rope = (part.contiguous() for part in entries.split([512, 16, 128], 1))
    format = format_of("fp8", src_cache.dtype, e4m3_of_bytes)
    tiles = dequantise(nope.unflatten(1, (4, 128)), scales.view(torch.float32)[..., None], format)
    put(dst, (rows,), torch.cat([bits(tiles.flatten(1).to(dst.dtype)), rope.view(torch.int16)], 1))


def _check_rows(argument: str, rows: Tensor, bad: Tensor, ids: Tensor, bad_indices: str) -> None:
    if bad_indices == "raise" and bad.any():
        at = int(bad.nonzero()[0])
        raise IndexError(f"{argument}[{rows[at]}] is {ids[at]}")


def cp_gather_indexer_k_quant_cache(
    kv_cache: Tensor,
    dst_k: Tensor,
    dst_scale: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    *,
    bad_indices: str = "raise",
) -> None:
    bounds = cu_seq_lens.cpu().long()
    check_bounds("cu_seq_lens", bounds, dst_k.shape[0])
    rows, *places = _sequence_rows(block_table, bounds, None, *kv_cache.shape[:2], bad_indices)
    parts = values_and_scales(kv_cache, dst_k.shape[1])
    for target, part in zip((dst_k, dst_scale.view(torch.uint8)), parts, strict=True):
        put(target, (rows,), _taken(part, *places))
