"""Latents and rotary keys of multi-head latent attention into the cache, and its queries side by side.

L latent size, R rotary size. An entry of the cache is a token's latent and then its rotary key.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .formats import bad_index, bits, fp8_format, quantise, tokens_and_slots
from .tiles import E4M3_DIVISOR, ROPE_BYTES, TILE, power_of_two_up, tile_amax


def _ds_mla_entries(kv_c: Tensor, k_pe: Tensor, format: str) -> Tensor:
    """[tokens, 656 bytes]: 512 e4m3 codes, the scales of their 4 tiles, and the bytes of 64 16-bit values or zeros."""
    tiles = kv_c.unflatten(1, (-1, TILE))
    scale = power_of_two_up((tile_amax(tiles) / E4M3_DIVISOR[format]).clamp(min=1e-4))
    codes = quantise(tiles, scale[..., None], format).flatten(1)
    rope = k_pe.contiguous().view(torch.uint8) if k_pe.shape[1] else codes.new_zeros(len(codes), ROPE_BYTES)
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
    """kv_cache[slot // B, slot % B] = quantise(concat(kv_c[t], k_pe[t]), scale), the scale 1 with skip_scale.

    kv_c [>=T, L]; k_pe [>=T, R]; kv_cache [N, B, L + R]; slot_mapping [T]. Float formats copy bits. fp8_ds_mla has
    scales of its own, and kv_cache [N, B, 656 bytes] in elements of 1, 2 or 4 bytes.
    A negative slot is padding. Tokens with one slot: the last one wins.
    """
    num_blocks, block_size = kv_cache.shape[:2]
    tokens, slots = tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    kv_c, k_pe = kv_c[tokens].cpu(), k_pe[tokens].cpu()

    if kv_cache_dtype == "fp8_ds_mla":
        of_bytes = kv_cache.dtype if kv_cache.dtype.itemsize == 1 else torch.uint8
        entries = _ds_mla_entries(kv_c, k_pe, fp8_format("fp8", of_bytes, e4m3_of_bytes))
        kv_cache = kv_cache.view(torch.uint8)
    else:
        format = fp8_format(kv_cache_dtype, kv_cache.dtype, e4m3_of_bytes)
        entries = torch.cat([bits(kv_c), bits(k_pe)], 1)
        if format is not None:
            scale = torch.tensor(1.0) if skip_scale else scale.reshape(())
            entries = quantise(entries.view(kv_c.dtype), scale, format)
    for slot, entry in zip(slots, entries.to(kv_cache.device)):
        bits(kv_cache)[slot // block_size, slot % block_size] = entry


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    """x [T, heads, R]; cos, sin [T, 1, R/2]. What is rounded, and when, is what eager PyTorch does on a CPU.

    With one dtype every product and sum is rounded to it; with a float32 table products and sums are float32.
    """
    first, second = x.chunk(2, -1) if is_neox else (x[..., 0::2], x[..., 1::2])
    rotated = first * cos - second * sin, second * cos + first * sin
    return (torch.cat(rotated, -1) if is_neox else torch.stack(rotated, -1).flatten(-2)).to(x.dtype)


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
    """Rotates q_pe and k_pe in place, each token by its position, then does as concat_and_cache_mla.

    positions [>=T]; q_pe [>=T, heads, R]; k_pe [>=T, R] or [>=T, 1, R]; cos_sin_cache [positions, R], cosines and then
    sines. Pairs are (i, i + R/2) if is_neox, else (2i, 2i + 1). A token with a negative slot, or with a bad one that is
    skipped, is rotated and not cached; with a bad position it is neither.
    """
    num_tokens, num_positions = len(slot_mapping), len(cos_sin_cache)
    tokens_and_slots(slot_mapping, kv_cache.shape[0] * kv_cache.shape[1], bad_indices)  # raises before anything is done
    positions = positions[:num_tokens].cpu().long()
    good = (positions >= 0) & (positions < num_positions)
    if not good.all() and bad_indices == "raise":
        token = (~good).nonzero()[0].item()
        raise bad_index("positions", token, positions[token].item())

    cos, sin = cos_sin_cache.cpu()[positions[good], None].chunk(2, -1)
    tokens = good.nonzero().flatten().to(q_pe.device)
    for x in (q_pe, k_pe if k_pe.dim() == 3 else k_pe[:, None]):
        x[tokens] = _rotated(x[tokens].cpu(), cos, sin, is_neox).to(x.device)

    slots = slot_mapping.cpu().where(good, -1)
    k_pe = k_pe.flatten(1)
    options = {"bad_indices": bad_indices, "e4m3_of_bytes": e4m3_of_bytes}
    concat_and_cache_mla(kv_c, k_pe, kv_cache, slots, kv_cache_dtype, kv_cache_scale, **options)


def concat_mla_q(ql_nope: Tensor, q_pe: Tensor, q_out: Tensor) -> None:
    """q_out[t, h] = concat(ql_nope[t, h], q_pe[t, h]). Copies bits; surplus heads of q_out are left as they were.

    ql_nope [T, heads, A]; q_pe [T, heads, R]; q_out [T, >=heads, A + R].
    """
    num_heads, nope_size = ql_nope.shape[1:]
    bits(q_out[:, :num_heads, :nope_size]).copy_(bits(ql_nope))
    bits(q_out[:, :num_heads, nope_size:]).copy_(bits(q_pe))


def _tensor_at(address: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Memory of the CPU that something else owns."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    num_elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides))
    memory = (ctypes.c_char * (num_elements * dtype.itemsize)).from_address(address)
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
    """concat_and_cache_mla of every layer. The caches are known by their addresses, so they must be the CPU's.

    kv_c [layers, >=T, L]; k_pe [layers, >=T, R]; kv_cache_ptrs [layers]; slot_mapping [layers, T]; kv_scales [layers].
    Strides count elements. A negative num_blocks says that all slots are good.
    """
    slot_mapping = slot_mapping.cpu().long()
    if num_blocks < 0:
        num_blocks = max(slot_mapping.clamp(min=-1).flatten().tolist(), default=-1) // block_size + 1
    bad = (slot_mapping >= num_blocks * block_size).nonzero().tolist()
    if bad and bad_indices == "raise":
        raise bad_index("slot_mapping", tuple(bad[0]), slot_mapping[tuple(bad[0])].item())
    dtype = kv_c.dtype if fp8_format(kv_cache_dtype, torch.uint8) is None else torch.uint8
    shape, strides = (num_blocks, block_size, kv_c.shape[2] + k_pe.shape[2]), (block_stride, entry_stride, 1)
    scales = kv_c.new_ones(len(kv_c)) if kv_scales is None else kv_scales
    for layer, address in enumerate(kv_cache_ptrs.tolist()):
        cache, slots = _tensor_at(address, shape, strides, dtype), slot_mapping[layer]
        options = {"bad_indices": bad_indices, "e4m3_of_bytes": e4m3_of_bytes}
        concat_and_cache_mla(kv_c[layer], k_pe[layer], cache, slots, kv_cache_dtype, scales[layer], **options)
