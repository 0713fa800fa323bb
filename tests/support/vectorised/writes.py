"""Tokens into the cache."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from multikv import reference
from tests.support.vectorised.numbers import (
    E4M3_DIVISOR,
    bits,
    format_of,
    power_of_two_up,
    put,
    quantise,
    tile_amax,
    values_and_scales,
)

__all__ = [
    "concat_and_cache_mla",
    "concat_and_cache_mla_grouped",
    "concat_and_cache_mla_rope_fused",
    "indexer_k_quant_and_cache",
    "reshape_and_cache",
    "reshape_and_cache_flash",
]

_FLOAT_NAMES = ("auto", "float32", "float16", "bfloat16")


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
        return bits(x)
    return quantise(x, scale.cpu().reshape(-1, 1), format)  # [tokens, heads, D] / [1 or heads, 1]


def reshape_and_cache_flash(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    num_blocks, block_size = key_cache.shape[:2]
    tokens, slots = _tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    format = format_of(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    for source, target, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        put(target, (slots // block_size, slots % block_size), _entries(source, tokens, scale, format))


def reshape_and_cache(
    key: Tensor,
    value: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    interleaved_v: bool = False,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    num_blocks, _, _, block_size, x = key_cache.shape
    tokens, slots = _tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    format = format_of(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    block, offset, every = slots // block_size, slots % block_size, slice(None)
    keys = _entries(key, tokens, k_scale, format).unflatten(2, (-1, x))
    values = _entries(value, tokens, v_scale, format)
    # Two index tensors with slices between them: their dimension comes first, as in `keys` and `values`.
    put(key_cache, (block, every, every, offset), keys)
    if interleaved_v:
        value_x = value_cache.shape[4]
        put(value_cache, (block, every, offset // value_x, every, offset % value_x), values)
    else:
        put(value_cache, (block, every, every, offset), values)


def _ds_mla_entries(kv_c: Tensor, k_pe: Tensor, format: str) -> Tensor:
    tiles = kv_c.unflatten(1, (-1, 128))
    scale = power_of_two_up((tile_amax(tiles) / E4M3_DIVISOR[format]).clamp(min=1e-4))
    codes = quantise(tiles, scale[..., None], format).flatten(1)
    rope = k_pe.contiguous().view(torch.uint8) if k_pe.shape[1] else codes.new_zeros(len(codes), 128)
    return torch.cat([codes, scale.view(torch.uint8), rope], 1)


def concat_and_cache_mla(
    kv_c: Tensor,
    k_pe: Tensor,
    kv_cache: Tensor,
    slot_mapping: Tensor,
    kv_cache_dtype: str,
    scale: Tensor | None,
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
        entries = _ds_mla_entries(kv_c, k_pe, format_of("fp8", of_bytes, e4m3_of_bytes))
        kv_cache = kv_cache.view(torch.uint8)
    elif (format := format_of(kv_cache_dtype, kv_cache.dtype, e4m3_of_bytes)) is not None:
        scale = torch.ones(()) if skip_scale else scale.reshape(())
        entries = torch.cat([quantise(x, scale, format) for x in (kv_c, k_pe)], 1)
    else:
        entries = torch.cat([bits(kv_c), bits(k_pe)], 1)
    put(kv_cache, (slots // block_size, slots % block_size), entries)


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
    kv_cache_scale: Tensor | None,
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
    format = format_of(name, kv_cache.dtype, e4m3_of_bytes)
    tiles = k[tokens.to(k.device)].cpu().unflatten(1, (-1, quant_block_size))
    scale = tile_amax(tiles).clamp(min=1e-4) / E4M3_DIVISOR[format]
    if kv_cache_dtype in ("ue8m0", "mxfp8"):
        scale = power_of_two_up(scale)
    codes = quantise(tiles, scale[..., None], format).flatten(1)
    stored = scale.view(torch.uint8)
    if kv_cache_dtype == "mxfp8":
        exponent = (scale.view(torch.int32) >> 23).to(torch.uint8)
        stored = exponent.repeat_interleave(4, -1)
    at = (slots // block_size, slots % block_size)
    for target, entries in zip(values_and_scales(kv_cache, k.shape[1]), (codes, stored), strict=True):
        put(target, at, entries)
