"""Keys and values into the cache."""

from __future__ import annotations

from torch import Tensor

from .formats import bad_index, bits, fp8_format, quantise


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
    """key_cache[slot // B, slot % B, h, :] = quantise(key[t, h, :], k_scale[h]); the same for value.

    key, value [>=T, H, D], each with its own D; caches [N, B, H, D]; slot_mapping [T]; scales of 1 or H elements.
    Float formats copy bits. A negative slot is padding. Tokens with one slot: the last one wins.
    """
    num_blocks, block_size, num_heads = key_cache.shape[:3]
    num_slots = num_blocks * block_size
    slots = slot_mapping.tolist()
    for token, slot in enumerate(slots):
        if slot >= num_slots and bad_indices == "raise":
            raise bad_index("slot_mapping", token, slot)
    tokens = [token for token, slot in enumerate(slots) if 0 <= slot < num_slots]

    format = fp8_format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    for source, destination, scale in ((key, key_cache, k_scale), (value, value_cache, v_scale)):
        if format is None:
            entries = bits(source)[tokens]
        else:
            entries = quantise(source[tokens], scale.reshape(-1).expand(num_heads)[:, None], format)
        entries = entries.to(destination.device)
        for token, entry in zip(tokens, entries):
            slot = slots[token]
            bits(destination)[slot // block_size, slot % block_size] = entry
