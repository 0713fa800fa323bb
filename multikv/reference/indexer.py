"""Writes the keys of the indexer of DeepSeek's sparse attention into their cache, and gathers them.

q is quant_block_size, the number of elements of a tile. A block of the cache holds the codes of all its slots, and then
their scales, 4 bytes for each tile:

    byte  0                          B * D                      B * (D + 4 * D / q)
          | codes of slot 0, 1, ...  | scales of slot 0, 1, ... |
          | D bytes each             | 4 * D / q bytes each     |
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formats import Family, ScaleType, find
from .formats import bits, fp8_format, quantise, tokens_and_slots
from .gather import check_bounds, sequence_rows
from .tiles import E4M3_DIVISOR, power_of_two_up, tile_amax

__all__ = ["cp_gather_indexer_k_quant_cache", "indexer_k_quant_and_cache"]


def codes_and_scales(kv_cache: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """Returns views of the cache: codes [N, B, D] and scales [N, B, 4 * D / q], both in bytes."""
    num_blocks, block_size, entry_bytes = kv_cache.shape
    blocks = bits(kv_cache).view(num_blocks, block_size * entry_bytes)
    codes, scales = blocks.split([block_size * head_size, block_size * (entry_bytes - head_size)], 1)
    return codes.unflatten(1, (block_size, head_size)), scales.unflatten(1, (block_size, entry_bytes - head_size))


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
    """Quantises k [>=T, D] in tiles of q elements, each with its own scale, and writes codes and scales.

    scale = max(amax, 1e-4) / M with M = 448 (e4m3fnuz: 224), rounded up to a power of two for `ue8m0` and `mxfp8`.
    `mxfp8` stores the exponent byte of this float32 four times. A negative slot is padding. Of several tokens with one
    slot, the last is written.
    """
    num_blocks, block_size = kv_cache.shape[:2]
    tokens, slots = tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)

    scale_type = find(kv_cache_dtype, Family.INDEXER).codec.scale_type
    format = fp8_format(kv_cache_dtype, kv_cache.dtype, e4m3_of_bytes, Family.INDEXER)
    assert format is not None  # the family accepts no float format
    tiles = k[tokens].cpu().float().unflatten(1, (-1, quant_block_size))
    scale = tile_amax(tiles).clamp(min=1e-4) / E4M3_DIVISOR[format]
    if scale_type in (ScaleType.POWER_OF_TWO, ScaleType.EXPONENT_BYTES):
        scale = power_of_two_up(scale)
    codes = quantise(tiles, scale[..., None], format).flatten(1)
    stored = bits(scale)
    if scale_type is ScaleType.EXPONENT_BYTES:
        stored = (stored >> 23) * 0x01010101

    cache_codes, cache_scales = codes_and_scales(kv_cache, k.shape[1])
    for slot, token_codes, token_scales in zip(slots, codes, stored, strict=True):
        block, offset = divmod(slot, block_size)
        cache_codes[block, offset] = token_codes.to(kv_cache.device)
        cache_scales[block, offset] = token_scales.view(torch.uint8).to(kv_cache.device)


def cp_gather_indexer_k_quant_cache(
    kv_cache: Tensor,
    dst_k: Tensor,
    dst_scale: Tensor,
    block_table: Tensor,
    cu_seq_lens: Tensor,
    *,
    bad_indices: str = "raise",
) -> None:
    """Copies the codes to dst_k [total, D] and the scales to dst_scale [total, 4 * D / q bytes], byte for byte."""
    bounds = cu_seq_lens.tolist()
    check_bounds("cu_seq_lens", bounds, dst_k.shape[0])
    num_blocks, block_size = kv_cache.shape[:2]
    rows, blocks, offsets = sequence_rows(block_table, bounds, None, num_blocks, block_size, bad_indices)
    codes, scales = codes_and_scales(kv_cache, dst_k.shape[1])
    bits(dst_k)[rows] = codes[blocks, offsets].to(dst_k.device)
    dst_scale.view(torch.uint8)[rows] = scales[blocks, offsets].to(dst_scale.device)
