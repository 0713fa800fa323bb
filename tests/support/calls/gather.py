"""Good calls of the ops that read sequences."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from multikv import reference
from tests.support.arguments import Arguments
from tests.support.calls.call import Call
from tests.support.tensors import cache_dtype, embed, pinned

# No token needs these blocks, so nobody may look at them.
BAD_BLOCKS = (2**31 - 1, -(2**31), -1, 1_000_000)


class Sequences(NamedTuple):
    """The arguments that say where rows come from, and what follows from them."""

    block_table: Tensor
    bounds: Tensor
    seq_starts: Tensor | None
    num_rows: int  # of all sequences, and before the first
    slots: Tensor  # those that rows are read from: block * block_size + offset


def make_sequences(
    device: torch.device | str = "cpu",
    *,
    lengths: Iterable[int] = (5, 0, 16, 33),
    starts: Sequence[int] | None = None,
    blocks: int = 9,
    block_size: int = 16,
    spare_columns: int = 1,
    first_row: int = 0,
    rows_wanted: int | None = None,
    index_dtype: torch.dtype = torch.int32,
) -> Sequences:
    """The table's entries that none of the first `rows_wanted` rows needs are bad."""
    lengths = list(lengths)
    begins = [0] * len(lengths) if starts is None else list(starts)
    bounds = list(itertools.accumulate(lengths, initial=first_row))
    columns = max([-(-(b + n) // block_size) for b, n in zip(begins, lengths, strict=True)], default=0)
    columns = max(0, columns + spare_columns)
    bad = torch.tensor(BAD_BLOCKS)
    table = bad[torch.randint(len(bad), (len(lengths), columns))]
    slots = [torch.empty(0, dtype=torch.int64)]
    for row, begin, bound, length in zip(table, begins, bounds[:-1], lengths, strict=True):
        if rows_wanted is not None:
            length = min(length, rows_wanted - bound)
        if length > 0:
            needed = slice(begin // block_size, (begin + length - 1) // block_size + 1)
            row[needed] = torch.randint(blocks, row[needed].shape)
            places = torch.arange(begin, max(begin, min(begin + length, columns * block_size)))
            slots.append(row[places // block_size] * block_size + places % block_size)
    return Sequences(
        table.to(device, index_dtype),
        torch.tensor(bounds, dtype=index_dtype, device=device),
        None if starts is None else torch.tensor(begins, dtype=index_dtype, device=device),
        bounds[-1],
        torch.cat(slots),
    )


def padded_blocks(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    block_padding: int = 0,
    offset: int = 0,
) -> Tensor:
    """[blocks, block_size, entry], dense within a block, with any number of elements between blocks."""
    dense = embed((shape[0], shape[1] * shape[2]), dtype, device, padding=(0, block_padding), offset=offset)
    return dense.unflatten(1, shape[1:])


def gather_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.bfloat16,
    entry: Sequence[int] = (2, 64),
    blocks: int = 9,
    block_size: int = 16,
    surplus_rows: int = 3,
    any_size: bool = False,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
    **options: object,
) -> Arguments:
    """A good call; `options` are those of make_sequences. With `any_size`, the op takes sizes from the tensors."""
    s = make_sequences(device, blocks=blocks, block_size=block_size, **options)
    return {
        "src_cache": embed((blocks, block_size, *entry), dtype, device, **(src_options or {})),
        "dst": embed((s.num_rows + surplus_rows, *entry), dtype, device, **(dst_options or {})),
        "block_table": s.block_table,
        "cu_seq_lens": s.bounds,
        "batch_size": -1 if any_size else s.block_table.shape[0],
        "seq_starts": s.seq_starts,
    }


def without_nans(codes: Tensor, format: str) -> Tensor:
    """Zeros instead: in a float output the bits of a NaN are free."""
    codes = codes.view(torch.uint8)
    nans = torch.tensor(sorted(reference.FP8_FORMATS[format].nans), dtype=torch.uint8, device=codes.device)
    codes.masked_fill_(torch.isin(codes, nans), 0)
    return codes


def dequant_arguments(
    device: torch.device | str = "cpu",
    *,
    format: str = "fp8_e4m3fn",
    float8: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    entry: int | Sequence[int] = 576,
    flat_dst: bool = False,
    per_head: bool = False,
    nans: bool = False,
    blocks: int = 9,
    block_size: int = 16,
    extra_tokens: int = 0,
    surplus_rows: int = 3,
    right_sequences: bool = False,
    any_size: bool = False,
    no_scale: bool = False,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
    **options: object,
) -> Arguments:
    """num_tokens is `extra_tokens` more than the sequences have. token_to_seq is nonsense, unless it shall be right.

    An entry is a size, or [heads, head_size]. With `any_size`, num_tokens is that of dst, and token_to_seq is None.
    """
    entry_shape = (entry,) if isinstance(entry, int) else tuple(entry)
    lengths = list(options.pop("lengths", (5, 0, 16, 33)))
    num_tokens = max(0, options.get("first_row", 0) + sum(lengths) + extra_tokens)
    at = {"blocks": blocks, "block_size": block_size, "rows_wanted": num_tokens}
    s = make_sequences(device, lengths=lengths, **at, **options)
    src_dtype = cache_dtype(format, dtype, float8=float8)
    src_cache = embed((blocks, block_size, *entry_shape), src_dtype, device, **(src_options or {}))
    fp8_format = reference.fp8_format(format, torch.uint8)
    if fp8_format is not None and not nans:
        without_nans(src_cache, fp8_format)
    if right_sequences:
        owners = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
        before, after = options.get("first_row", 0), max(0, extra_tokens)
        owners = torch.nn.functional.pad(owners, (before, after), value=-1)
    else:
        owners = torch.tensor([0, 1, len(lengths), *BAD_BLOCKS])[torch.randint(7, (num_tokens + surplus_rows,))]
    dst_shape = (math.prod(entry_shape),) if flat_dst else entry_shape
    scale = torch.rand(entry_shape[0]) + 0.25 if per_head else torch.tensor([0.37])
    return {
        "src_cache": src_cache,
        "dst": embed((num_tokens + surplus_rows, *dst_shape), dtype, device, **(dst_options or {})),
        "block_table": s.block_table,
        "cu_seq_lens": s.bounds,
        "token_to_seq": None if any_size else owners.to(s.bounds),
        "num_tokens": -1 if any_size else num_tokens,
        "kv_cache_dtype": format,
        "scale": None if no_scale else scale.to(device),
        "seq_starts": s.seq_starts,
    }


def fill_ds_mla(entries: Tensor, nans: bool) -> Tensor:
    """Tile scales of all kinds, into random [..., 656 bytes]. Without NaNs: nor anything that yields one."""
    scales = torch.exp2(torch.randint(-20, 10, (*entries.shape[:-1], 4)).float())
    plain = torch.rand(scales.shape) * 10
    special = torch.tensor([0.0, -1.5, 1e-4, 1e-38, 1e-42, 3e38, *[float("inf"), float("nan")] * nans])
    special = special[torch.randint(len(special), scales.shape)]
    kind = torch.rand(scales.shape)
    scales = torch.where(kind < 0.5, scales, torch.where(kind < 0.8, plain, special))
    as_bytes = entries.view(torch.uint8)
    as_bytes[..., 512:528] = scales.view(torch.uint8).to(entries.device)
    if not nans:
        for format in ("e4m3fn", "e4m3fnuz"):
            without_nans(as_bytes[..., :512], format)
    return entries


def _row_ids(slots_read: Tensor, num_slots: int, device_rows: int, host_rows: int) -> tuple[Tensor, Tensor]:
    """For each slot a row on the device, or a row on the host, or neither. What is not to be looked at is bad."""
    kinds = [0] * (device_rows > 0) + [1] * (host_rows > 0) + [2]
    kind = torch.tensor(kinds)[torch.randint(len(kinds), (num_slots,))]
    bad = torch.tensor(BAD_BLOCKS)[torch.randint(len(BAD_BLOCKS), (2, num_slots))]
    on_device = torch.randint(max(device_rows, 1), (num_slots,))
    on_host = torch.randint(max(host_rows, 1), (num_slots,))
    device_ids = torch.where(kind == 0, on_device, -kind)  # -1 or -2
    nowhere = torch.tensor([-1, -(2**31)])[torch.randint(2, (num_slots,))]
    host_ids = torch.where(kind == 0, bad[1], torch.where(kind == 1, on_host, nowhere))
    unread = torch.ones(num_slots, dtype=torch.bool)
    unread[slots_read] = False
    return torch.where(unread, bad[0], device_ids), torch.where(unread, bad[1], host_ids)


def upconvert_arguments(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.uint8,
    nans: bool = False,
    blocks: int = 9,
    block_size: int = 16,
    host_rows: int | None = None,
    device_blocks: int = 3,
    last_bound: bool = False,
    surplus_rows: int = 3,
    any_size: bool = False,
    src_options: dict[str, object] | None = None,
    dst_options: dict[str, object] | None = None,
    host_options: dict[str, object] | None = None,
    **options: object,
) -> Arguments:
    """With `host_rows`, `blocks` are logical ones, `device_blocks` of them (and some twice) on the device.

    The last sequence ends with the output, whether or not a last bound is given, which is bad. Row ids are bad where
    none is needed: of rows that nobody reads, and of the host's where there is one on the device.
    """
    device = torch.device(device)
    lengths = list(options.pop("lengths", (5, 0, 16, 33)))
    if lengths:
        lengths[-1] += surplus_rows
        surplus_rows = 0
    s = make_sequences(device, lengths=lengths, blocks=blocks, block_size=block_size, **options)
    starts = s.bounds.clone()
    starts[-1] = -7
    src_blocks = blocks if host_rows is None else device_blocks
    src_cache = embed((src_blocks, block_size, 656), dtype, device, **(src_options or {}))
    host_cache = host_ids = device_ids = None
    if host_rows is not None:
        host_cache = fill_ds_mla(embed((host_rows, 656), torch.uint8, **(host_options or {})), nans)
        device_ids, host_ids = _row_ids(s.slots, blocks * block_size, device_blocks * block_size, host_rows)
        device_ids, host_ids = device_ids.to(s.bounds), host_ids.to(s.bounds)
        host_cache = pinned(host_cache) if device.type == "cuda" else host_cache
    return {
        "src_cache": fill_ds_mla(src_cache, nans),
        "dst": embed((s.num_rows + surplus_rows, 576), torch.bfloat16, device, **(dst_options or {})),
        "block_table": s.block_table,
        "workspace_starts": starts if last_bound else starts[:-1],
        "batch_size": -1 if any_size else len(lengths),
        "seq_starts": s.seq_starts,
        "host_cache": host_cache,
        "host_row_ids": host_ids,
        "device_row_ids": device_ids,
    }


GATHER, DEQUANT = "cp_gather_cache", "gather_and_maybe_dequant_cache"
UPCONVERT = "cp_gather_and_upconvert_fp8_kv_cache"
STARTS = {"starts": (1, 0, 17, 3)}
WIDE = STARTS | {"index_dtype": torch.int64}
# Options for others have as many rows as the default, and as wide a table.
LARGER = {
    "others": {"lengths": (16, 33, 5, 0)},
    "larger": {"lengths": (1000, 0, 3, 2000, 1, 500), "blocks": 64, "first_row": 7},
}
LARGER_STARTS = {
    "others": LARGER["others"] | {"starts": (2, 3, 0, 9)},
    "larger": LARGER["larger"] | {"starts": (5, 9, 100, 0, 31, 16)},
}
NANS = {"nans": True}
ANY_SIZE = {"any_size": True}
HEADS = {"entry": (4, 32), "src_options": {"order": (0, 2, 1, 3)}, "per_head": True}

CALLS = {
    "gather": Call(GATHER, gather_arguments, {}, **LARGER),
    "gather-starts": Call(GATHER, gather_arguments, WIDE, **LARGER_STARTS, uses_all=True),
    "gather-any_size": Call(GATHER, gather_arguments, ANY_SIZE, **LARGER),
    "gather-no_sequences": Call(GATHER, gather_arguments, {"lengths": ()}),
    "dequant": Call(DEQUANT, dequant_arguments, {}, **LARGER),
    "dequant-starts": Call(DEQUANT, dequant_arguments, WIDE | {"extra_tokens": 2}, **LARGER_STARTS, uses_all=True),
    "dequant-nans": Call(DEQUANT, dequant_arguments, NANS | {"format": "fp8_e5m2"}, nan_outputs=("dst",), **LARGER),
    "dequant-auto": Call(DEQUANT, dequant_arguments, STARTS | {"format": "auto"}, **LARGER_STARTS),
    "dequant-heads": Call(DEQUANT, dequant_arguments, HEADS, **LARGER),
    "dequant-any_size": Call(DEQUANT, dequant_arguments, ANY_SIZE, **LARGER),
    "dequant-no_scale": Call(DEQUANT, dequant_arguments, {"format": "auto", "no_scale": True}, **LARGER),
    "dequant-no_sequences": Call(DEQUANT, dequant_arguments, {"lengths": ()}),
    "upconvert": Call(UPCONVERT, upconvert_arguments, {}, **LARGER),
    "upconvert-starts": Call(UPCONVERT, upconvert_arguments, WIDE, **LARGER_STARTS),
    "upconvert-nans": Call(UPCONVERT, upconvert_arguments, NANS, nan_outputs=("dst",), **LARGER),
    "upconvert-host": Call(UPCONVERT, upconvert_arguments, STARTS | {"host_rows": 50}, **LARGER_STARTS, uses_all=True),
    "upconvert-any_size": Call(UPCONVERT, upconvert_arguments, ANY_SIZE, **LARGER),
    "upconvert-no_sequences": Call(UPCONVERT, upconvert_arguments, {"lengths": ()}),
}
