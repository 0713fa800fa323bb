"""Multi-head latent attention (MLA): caches latent vectors and rotary keys, and concatenates the parts of queries.

L is the latent size, R the rotary size. An entry of the cache is a token's latent vector followed by its rotary key.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..formats import Family, ScalePlace, find
from .formats import bad_index, bits, e4m3_format, fp8_format, quantise, tokens_and_slots
from .tiles import E4M3_DIVISOR, ROPE_BYTES, TILE, power_of_two_up, tile_amax

__all__ = ["concat_and_cache_mla", "concat_and_cache_mla_grouped", "concat_mla_q"]


def _ds_mla_entries(kv_c: Tensor, k_pe: Tensor, format: str) -> Tensor:
    """Returns entries [tokens, 656 bytes]: e4m3 codes, tile scales, and the rotary key, or zeros if there is none."""
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
    scale: Tensor | None,
    skip_scale: bool = False,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Writes kv_cache[slot // B, slot % B] = quantise(concat(kv_c[t], k_pe[t]), scale); skip_scale: the scale is 1.

    kv_c [>=T, L]; k_pe [>=T, R]; kv_cache [N, B, L + R]; slot_mapping [T]. Float formats copy bits. For fp8_ds_mla the
    scales come from the data, and kv_cache is [N, B, 656 bytes] with elements of 1, 2 or 4 bytes. A negative slot is
    padding. Of several tokens with one slot, the last is written.
    """
    num_blocks, block_size = kv_cache.shape[:2]
    tokens, slots = tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    kv_c, k_pe = kv_c[tokens].cpu(), k_pe[tokens].cpu()

    if find(kv_cache_dtype, Family.MLA).codec.scale_place is ScalePlace.ENTRY:  # fp8_ds_mla
        # A dtype of 2 or 4 bytes does not name an e4m3 format, so the cache is treated as one of uint8.
        code_dtype = kv_cache.dtype if kv_cache.dtype.itemsize == 1 else torch.uint8
        entries = _ds_mla_entries(kv_c, k_pe, e4m3_format(code_dtype, e4m3_of_bytes))
        kv_cache = kv_cache.view(torch.uint8)
    else:
        format = fp8_format(kv_cache_dtype, kv_cache.dtype, e4m3_of_bytes)
        entries = torch.cat([bits(kv_c), bits(k_pe)], 1)
        if format is not None:
            assert skip_scale or scale is not None  # an fp8 format needs its scale
            one_scale = torch.tensor(1.0) if scale is None or skip_scale else scale.reshape(())
            entries = quantise(entries.view(kv_c.dtype), one_scale, format)
    for slot, entry in zip(slots, entries.to(kv_cache.device), strict=True):
        bits(kv_cache)[slot // block_size, slot % block_size] = entry


def concat_mla_q(ql_nope: Tensor, q_pe: Tensor, q_out: Tensor) -> None:
    """Copies q_out[t, h] = concat(ql_nope[t, h], q_pe[t, h]), bit for bit.

    ql_nope [T, heads, A]; q_pe [T, heads, R]; q_out [T, >=heads, A + R]. Surplus heads of q_out keep their content.
    """
    num_heads, nope_size = ql_nope.shape[1:]
    bits(q_out[:, :num_heads, :nope_size]).copy_(bits(ql_nope))
    bits(q_out[:, :num_heads, nope_size:]).copy_(bits(q_pe))


def _tensor_at(address: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Returns a view of host memory that another tensor owns."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    num_elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
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
    """Does what concat_and_cache_mla does for every layer. The caches are given by address and must be on the CPU.

    kv_c [layers, >=T, L]; k_pe [layers, >=T, R]; kv_cache_ptrs [layers]; slot_mapping [layers, T]; kv_scales [layers].
    Strides are in elements of the cache. If num_blocks is negative, all slots are assumed to exist.
    """
    slot_mapping = slot_mapping.cpu().long()
    if num_blocks < 0:
        num_blocks = max(slot_mapping.clamp(min=-1).flatten().tolist(), default=-1) // block_size + 1
    bad = (slot_mapping >= num_blocks * block_size).nonzero().tolist()
    if bad and bad_indices == "raise":
        raise bad_index("slot_mapping", tuple(bad[0]), slot_mapping[tuple(bad[0])].item())
    is_fp8 = fp8_format(kv_cache_dtype, torch.uint8, family=Family.CACHE) is not None
    dtype = torch.uint8 if is_fp8 else kv_c.dtype
    shape, strides = (num_blocks, block_size, kv_c.shape[2] + k_pe.shape[2]), (block_stride, entry_stride, 1)
    scales = kv_c.new_ones(len(kv_c)) if kv_scales is None else kv_scales
    for layer, address in enumerate(kv_cache_ptrs.tolist()):
        cache, slots = _tensor_at(address, shape, strides, dtype), slot_mapping[layer]
        concat_and_cache_mla(
            kv_c[layer],
            k_pe[layer],
            cache,
            slots,
            kv_cache_dtype,
            scales[layer],
            bad_indices=bad_indices,
            e4m3_of_bytes=e4m3_of_bytes,
        )
