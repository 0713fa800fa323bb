"""The vectorised twin of multikv.reference: the same functions, in PyTorch's index operations instead of Python loops.

It is the oracle of large calls, for which the plain reference takes seconds. `unit/test_vectorised.py` holds the two
equal, on all 16-bit floats and on random calls of every op. Positions of a sequence are assumed to be below 2^62.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from multikv import reference

convert_fp8 = reference.convert_fp8
concat_mla_q = reference.concat_mla_q
swap_blocks_batch = reference.swap_blocks_batch

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_FLOAT_NAMES = ("auto", "float32", "float16", "bfloat16")
_E4M3_DIVISOR = {"e4m3fn": 448.0, "e4m3fnuz": 224.0}
_LARGEST = torch.finfo(torch.float32).max


# -- numbers -----------------------------------------------------------------------------------------------------------


def _bits(x: Tensor) -> Tensor:
    if x.is_complex():
        x = torch.view_as_real(x)
    return x.view(_INTEGERS[x.element_size()])


def _format(kv_cache_dtype: str, cache_dtype: torch.dtype, e4m3_of_bytes: str) -> str | None:
    return reference.fp8_format(kv_cache_dtype, cache_dtype, e4m3_of_bytes)


@functools.cache
def _values(format: str) -> Tensor:
    """The float32 that each of the 256 codes stands for."""
    return reference.decode_fp8(torch.arange(256, dtype=torch.uint8), format)


@functools.cache
def _thresholds(format: str) -> Tensor:
    """Threshold i is the largest float32 that rounds to a code of at most i.

    It is the number halfway between the values of the codes i and i + 1 if code i is even, which takes ties, and
    otherwise the float32 before that number.
    """
    values = _values(format)[:0x80]
    values = values[values.isfinite()]
    halfway = (values[:-1] + values[1:]) / 2  # exact: it has one more significant bit than an fp8 number
    below = torch.nextafter(halfway, torch.zeros(()))
    return torch.where(torch.arange(len(halfway)) % 2 == 0, halfway, below)


def encode_fp8(x: Tensor, format: str) -> Tensor:
    """float32 -> uint8 codes, rounded to the nearest even and saturated."""
    layout = reference.FP8_FORMATS[format]
    x = x.cpu().float().contiguous()
    code = torch.searchsorted(_thresholds(format), x.abs(), out_int32=True).to(torch.uint8)
    negative = x.signbit() if layout.has_negative_zero else x.signbit() & (code != 0)
    return torch.where(x.isnan(), layout.nan, code | (negative.to(torch.uint8) << 7)).to(torch.uint8)


def decode_fp8(codes: Tensor, format: str) -> Tensor:
    return _values(format)[codes.cpu().int()]


def _quantise(x: Tensor, scale: Tensor, format: str) -> Tensor:
    return encode_fp8(x.cpu().float() / scale.cpu().float(), format)


def _dequantise(codes: Tensor, scale: Tensor, format: str) -> Tensor:
    return decode_fp8(codes, format) * scale.cpu().float()


def _tile_amax(tiles: Tensor) -> Tensor:
    return tiles.float().abs().nan_to_num(nan=0.0, posinf=_LARGEST).amax(-1)


def _power_of_two_up(scale: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(scale)
    power = torch.ldexp(torch.ones_like(scale), torch.where(mantissa == 0.5, exponent - 1, exponent))
    return torch.empty(scale.shape).copy_(power)  # with strides that no empty dimension has made 0


# -- writing tokens ----------------------------------------------------------------------------------------------------


def _tokens_and_slots(slot_mapping: Tensor, num_slots: int, bad_indices: str) -> tuple[Tensor, Tensor]:
    """The tokens that are written, and the slot of each. Of tokens with one slot only the last is among them."""
    slots = slot_mapping.cpu().long()
    bad = slots >= num_slots
    if bad_indices == "raise" and bad.any():
        token = int(bad.nonzero()[0])
        raise IndexError(f"slot_mapping[{token}] is {slots[token]}")
    tokens = ((slots >= 0) & ~bad).nonzero().flatten()
    order = slots[tokens].argsort(stable=True)
    sorted_slots = slots[tokens][order]
    is_last = torch.ones(len(order), dtype=torch.bool)
    is_last[:-1] = sorted_slots[1:] != sorted_slots[:-1]
    tokens = tokens[order[is_last].sort().values]
    return tokens, slots[tokens]


def _entries(x: Tensor, tokens: Tensor, scale: Tensor, format: str | None) -> Tensor:
    x = x[tokens.to(x.device)].cpu()
    if format is None:
        return _bits(x)
    return _quantise(x, scale.cpu().reshape(-1, 1), format)  # [tokens, heads, D] / [1 or heads, 1]


def _put(target: Tensor, at: tuple[Tensor | slice, ...], entries: Tensor) -> None:
    at = tuple(x.to(target.device) if isinstance(x, Tensor) else x for x in at)
    _bits(target)[at] = entries.to(target.device)


def reshape_and_cache_flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor,
    v_scale: Tensor,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    num_blocks, block_size = key_cache.shape[:2]
    tokens, slots = _tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    format = _format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    for source, target, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        _put(target, (slots // block_size, slots % block_size), _entries(source, tokens, scale, format))


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor,
    v_scale: Tensor,
    interleaved_v: bool = False,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    num_blocks, _, _, block_size, x = key_cache.shape
    tokens, slots = _tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    format = _format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    block, offset, every = slots // block_size, slots % block_size, slice(None)
    keys = _entries(key, tokens, k_scale, format).unflatten(2, (-1, x))
    values = _entries(value, tokens, v_scale, format)
    # Two index tensors with slices between them: their dimension comes first, as in `keys` and `values`.
    _put(key_cache, (block, every, every, offset), keys)
    if interleaved_v:
        value_x = value_cache.shape[4]
        _put(value_cache, (block, every, offset // value_x, every, offset % value_x), values)
    else:
        _put(value_cache, (block, every, every, offset), values)


def _ds_mla_entries(kv_c: Tensor, k_pe: Tensor, format: str) -> Tensor:
    tiles = kv_c.unflatten(1, (-1, 128))
    scale = _power_of_two_up((_tile_amax(tiles) / _E4M3_DIVISOR[format]).clamp(min=1e-4))
    codes = _quantise(tiles, scale[..., None], format).flatten(1)
    rope = k_pe.contiguous().view(torch.uint8) if k_pe.shape[1] else codes.new_zeros(len(codes), 128)
    return torch.cat([codes, scale.view(torch.uint8), rope], 1)


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor,
    skip_scale: bool = False,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    num_blocks, block_size = kv_cache.shape[:2]
    tokens, slots = _tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    kv_c, k_pe = (x[tokens.to(x.device)].cpu() for x in (kv_c, k_pe))
    if kv_cache_dtype == "fp8_ds_mla":
        of_bytes = kv_cache.dtype if kv_cache.dtype.itemsize == 1 else torch.uint8
        entries = _ds_mla_entries(kv_c, k_pe, _format("fp8", of_bytes, e4m3_of_bytes))
        kv_cache = kv_cache.view(torch.uint8)
    elif (format := _format(kv_cache_dtype, kv_cache.dtype, e4m3_of_bytes)) is not None:
        scale = torch.ones(()) if skip_scale else scale.reshape(())
        entries = torch.cat([_quantise(x, scale, format) for x in (kv_c, k_pe)], 1)
    else:
        entries = torch.cat([_bits(kv_c), _bits(k_pe)], 1)
    _put(kv_cache, (slots // block_size, slots % block_size), entries)


def concat_and_cache_mla_rope_fused(
    positions: Tensor,
    q_pe: Tensor,
    k_pe: Tensor,
    kv_c: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    slot_mapping: Tensor,
    kv_cache: Tensor,
    kv_cache_dtype: str,
    kv_cache_scale: Tensor,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """The reference rotates, of which it does all tokens at once; the twin writes the cache."""
    options = {"bad_indices": bad_indices, "e4m3_of_bytes": e4m3_of_bytes}
    _tokens_and_slots(slot_mapping, kv_cache.shape[0] * kv_cache.shape[1], bad_indices)  # raises before all else
    nowhere = torch.full_like(slot_mapping, -1)
    reference.concat_and_cache_mla_rope_fused(
        positions,
        q_pe,
        k_pe,
        kv_c,
        cos_sin_cache,
        is_neox,
        nowhere,
        kv_cache,
        kv_cache_dtype,
        kv_cache_scale,
        **options,
    )
    positions = positions[: len(slot_mapping)].cpu()
    slots = slot_mapping.cpu().where((positions >= 0) & (positions < len(cos_sin_cache)), -1)
    concat_and_cache_mla(kv_c, k_pe.flatten(1), kv_cache, slots, kv_cache_dtype, kv_cache_scale, **options)


def _tensor_at(address: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of the CPU's memory at an address, which something else owns."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def concat_and_cache_mla_grouped(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache_ptrs: Tensor,
    slot_mapping: Tensor,
    block_size: int,
    block_stride: int,
    entry_stride: int,
    kv_scales: Tensor | None = None,
    kv_cache_dtype: str = "auto",
    num_blocks: int = -1,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    slot_mapping = slot_mapping.cpu().long()
    if num_blocks < 0:
        most = int(slot_mapping.max()) if slot_mapping.numel() else -1
        num_blocks = max(most, -1) // block_size + 1
    bad = (slot_mapping >= num_blocks * block_size).nonzero().tolist()
    if bad and bad_indices == "raise":
        raise IndexError(f"slot_mapping[{tuple(bad[0])}] is {slot_mapping[tuple(bad[0])]}")
    dtype = kv_c.dtype if kv_cache_dtype in _FLOAT_NAMES else torch.uint8
    shape, strides = (num_blocks, block_size, kv_c.shape[2] + k_pe.shape[2]), (block_stride, entry_stride, 1)
    scales = torch.ones(len(kv_c)) if kv_scales is None else kv_scales
    options = {"bad_indices": bad_indices, "e4m3_of_bytes": e4m3_of_bytes}
    for layer, address in enumerate(kv_cache_ptrs.tolist()):
        cache = _tensor_at(address, shape, strides, dtype)
        concat_and_cache_mla(
            kv_c[layer], k_pe[layer], cache, slot_mapping[layer], kv_cache_dtype, scales[layer], **options
        )


def _values_and_scales(kv_cache: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    num_blocks, block_size, entry_bytes = kv_cache.shape
    blocks = _bits(kv_cache).view(num_blocks, block_size * entry_bytes)
    values, scales = blocks[:, : block_size * head_size], blocks[:, block_size * head_size :]
    return values.unflatten(1, (block_size, head_size)), scales.unflatten(1, (block_size, entry_bytes - head_size))


def indexer_k_quant_and_cache(
    k: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    quant_block_size: int,
    kv_cache_dtype: str,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    num_blocks, block_size = kv_cache.shape[:2]
    tokens, slots = _tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    name = kv_cache_dtype if kv_cache_dtype in ("fp8_e4m3fn", "fp8_e4m3fnuz") else "fp8"
    format = _format(name, kv_cache.dtype, e4m3_of_bytes)
    tiles = k[tokens.to(k.device)].cpu().unflatten(1, (-1, quant_block_size))
    scale = _tile_amax(tiles).clamp(min=1e-4) / _E4M3_DIVISOR[format]
    if kv_cache_dtype in ("ue8m0", "mxfp8"):
        scale = _power_of_two_up(scale)
    codes = _quantise(tiles, scale[..., None], format).flatten(1)
    stored = scale.view(torch.uint8)
    if kv_cache_dtype == "mxfp8":
        exponent = (scale.view(torch.int32) >> 23).to(torch.uint8)
        stored = exponent.repeat_interleave(4, -1)
    at = (slots // block_size, slots % block_size)
    for target, entries in zip(_values_and_scales(kv_cache, k.shape[1]), (codes, stored), strict=True):
        _put(target, at, entries)


# -- reading sequences -------------------------------------------------------------------------------------------------


def _check_bounds(argument: str, bounds: Tensor, num_rows: float) -> None:
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
    return _bits(cache)[blocks.to(cache.device), offsets.to(cache.device)].cpu()


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
    _check_bounds("cu_seq_lens", bounds, dst.shape[0])
    rows, *places = _sequence_rows(block_table, bounds, seq_starts, *src_cache.shape[:2], bad_indices)
    _put(dst, (rows,), _taken(src_cache, *places))


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
    bounds = cu_seq_lens.cpu().long()
    _check_bounds("cu_seq_lens", bounds, math.inf)
    bounds = bounds.clamp(max=num_tokens)
    rows, *places = _sequence_rows(block_table, bounds, seq_starts, *src_cache.shape[:2], bad_indices)
    entries = _taken(src_cache, *places)
    format = _format(kv_cache_dtype, src_cache.dtype, e4m3_of_bytes)
    if format is not None:
        entries = _bits(_dequantise(entries, scale, format).to(dst.dtype))
    _put(dst, (rows,), entries)


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
    bounds = torch.cat([workspace_starts[:batch_size].cpu().long(), torch.tensor([dst.shape[0]])])
    _check_bounds("workspace_starts", bounds, dst.shape[0])
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
    format = _format("fp8", src_cache.dtype, e4m3_of_bytes)
    tiles = _dequantise(nope.unflatten(1, (4, 128)), scales.view(torch.float32)[..., None], format)
    _put(dst, (rows,), torch.cat([_bits(tiles.flatten(1).to(dst.dtype)), rope.view(torch.int16)], 1))


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
    _check_bounds("cu_seq_lens", bounds, dst_k.shape[0])
    rows, *places = _sequence_rows(block_table, bounds, None, *kv_cache.shape[:2], bad_indices)
    parts = _values_and_scales(kv_cache, dst_k.shape[1])
    for target, part in zip((dst_k, dst_scale.view(torch.uint8)), parts, strict=True):
        _put(target, (rows,), _taken(part, *places))


# -- blocks ------------------------------------------------------------------------------------------------------------


def swap_blocks(src: Tensor, dst: Tensor, block_size_in_bytes: int, block_mapping: Tensor) -> None:
    source, target = (_whole_blocks(x, block_size_in_bytes) for x in (src, dst))
    if not len(block_mapping):
        return
    for side, blocks in enumerate((source, target)):
        bad = (block_mapping[:, side] < 0) | (block_mapping[:, side] >= len(blocks))
        if bad.any():
            pair = int(bad.nonzero()[0])
            raise IndexError(f"block_mapping[{(pair, side)}] is {block_mapping[pair, side]}")
    reads, writes = block_mapping.long().unbind(1)
    target[writes.to(target.device)] = source[reads.to(source.device)].to(target.device)


def _whole_blocks(x: Tensor, block_bytes: int) -> Tensor:
    bytes = x.view(-1).view(torch.uint8)
    return bytes[: len(bytes) // block_bytes * block_bytes].view(-1, block_bytes)


def swap_blocks_layers(
    src: Sequence[Tensor], dst: Sequence[Tensor], block_size_in_bytes: int, block_mapping: Tensor
) -> None:
    for source, target in zip(src, dst, strict=True):
        swap_blocks(source, target, block_size_in_bytes, block_mapping)
