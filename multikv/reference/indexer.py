"""Keys of the sparse attention's indexer, into the cache and out of it.

A block of the cache holds the values of its B tokens, B * D bytes, and then the scales of its B tokens, each token's
4 * D / q bytes together: a float32 for every q values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import bits, fp8_format, quantise, tokens_and_slots
from .gather import check_bounds, sequence_rows
from .tiles import E4M3_DIVISOR, power_of_two_up, tile_amax


def values_and_scales(kv_cache: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """Views of the cache: bytes [N, B, D] and [N, B, 4 * D / q]."""
    num_blocks, block_size, entry_bytes = kv_cache.shape
    shapes = [(block_size, head_size), (block_size, entry_bytes - head_size)]
    blocks = bits(kv_cache).view(num_blocks, block_size * entry_bytes)
    parts = blocks.split([rows * columns for rows, columns in shapes], 1)
    return tuple(part.unflatten(1, shape) for part, shape in zip(parts, shapes))


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
    """Quantises k [>=T, D] in groups of quant_block_size values, each with a scale of its own.

    scale = max(amax, 1e-4) / M, with `ue8m0` and `mxfp8` rounded up to a power of two; `mxfp8` stores, instead of the
    float32, its exponent byte four times. A negative slot is padding. Tokens with one slot: the last one wins.
    """
    num_blocks, block_size = kv_cache.shape[:2]
    tokens, slots = tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)

    strict = kv_cache_dtype in ("fp8_e4m3fn", "fp8_e4m3fnuz")
    format = fp8_format(kv_cache_dtype if strict else "fp8", kv_cache.dtype, e4m3_of_bytes)
    groups = k[tokens].cpu().float().unflatten(1, (-1, quant_block_size))
    scale = tile_amax(groups).clamp(min=1e-4) / E4M3_DIVISOR[format]
    if kv_cache_dtype in ("ue8m0", "mxfp8"):
        scale = power_of_two_up(scale)
    codes = quantise(groups, scale[..., None], format).flatten(1)
    stored = bits(scale)
    if kv_cache_dtype == "mxfp8":
        stored = (stored >> 23) * 0x01010101

    values, scales = values_and_scales(kv_cache, k.shape[1])
    for slot, value, tile_scales in zip(slots, codes, stored):
        block, offset = divmod(slot, block_size)
        values[block, offset] = value.to(kv_cache.device)
        scales[block, offset] = tile_scales.view(torch.uint8).to(kv_cache.device)


def cp_gather_indexer_k_quant_cache(
    kv_cache: Tensor,
    dst_k: Tensor,
    dst_scale: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    *,
    bad_indices: str = "raise",
) -> None:
    """The values to dst_k [total, D] and the scales to dst_scale [total, 4 * D / q bytes]: copies of bytes."""
    bounds = cu_seq_lens.tolist()
    check_bounds("cu_seq_lens", bounds, dst_k.shape[0])
    rows, blocks, offsets = sequence_rows(block_table, bounds, None, *kv_cache.shape[:2], bad_indices)
    values, scales = values_and_scales(kv_cache, dst_k.shape[1])
    bits(dst_k)[rows] = values[blocks, offsets].to(dst_k.device)
    dst_scale.view(torch.uint8)[rows] = scales[blocks, offsets].to(dst_scale.device)
