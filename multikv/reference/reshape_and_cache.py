"""Writes keys and values into a paged cache."""

from __future__ import annotations

from torch import Tensor

from .formats import bits, fp8_format, quantise, tokens_and_slots

__all__ = ["reshape_and_cache", "reshape_and_cache_flash"]


def _entries(x: Tensor, tokens: list[int], scale: Tensor | None, format: str | None) -> Tensor:
    """Returns what the cache stores for these tokens, [tokens, H, D]: the bits of floats, or fp8 codes."""
    if format is None:
        return bits(x)[tokens]
    assert scale is not None  # an fp8 format needs its scale
    return quantise(x[tokens], scale.reshape(-1).expand(x.shape[1])[:, None], format)


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
    """Writes key_cache[slot // B, slot % B, h, :] = quantise(key[t, h, :], k_scale[h]), and value likewise.

    key, value [>=T, H, D], whose D may differ; caches [N, B, H, D]; slot_mapping [T]; scales of 1 or H elements.
    Float formats copy bits. A negative slot is padding. Of several tokens with one slot, the last is written.
    """
    num_blocks, block_size = key_cache.shape[:2]
    tokens, slots = tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    format = fp8_format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    for source, destination, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        entries = _entries(source, tokens, scale, format).to(destination.device)
        for slot, entry in zip(slots, entries, strict=True):
            bits(destination)[slot // block_size, slot % block_size] = entry


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
    """Writes keys and values into caches of the packed layouts, where b, o = divmod(slot, B).

    key_cache [N, H, D/x, B, x]: key_cache[b, h, d // x, o, d % x] = quantise(key[t, h, d], k_scale[h]).
    value_cache [N, H, D, B]: value_cache[b, h, d, o] = quantise(value[t, h, d], v_scale[h]).
    value_cache with interleaved_v [N, H, B/x, D, x]: value_cache[b, h, o // x, d, o % x] = quantise(...), with an x
    that may differ from that of key_cache.
    """
    num_blocks, _, _, block_size, x = key_cache.shape
    tokens, slots = tokens_and_slots(slot_mapping, num_blocks * block_size, bad_indices)
    format = fp8_format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    keys = _entries(key, tokens, k_scale, format).unflatten(2, (-1, x)).to(key_cache.device)
    values = _entries(value, tokens, v_scale, format).to(value_cache.device)
    for slot, key_entry, value_entry in zip(slots, keys, values, strict=True):
        block, offset = divmod(slot, block_size)
        bits(key_cache)[block, :, :, offset, :] = key_entry
        if interleaved_v:
            value_x = value_cache.shape[4]
            bits(value_cache)[block, :, offset // value_x, :, offset % value_x] = value_entry
        else:
            bits(value_cache)[block, :, :, offset] = value_entry
