"""Cached keys that move to other positions of their sequences."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import bad_index, bits, dequantise, fp8_format, quantise

__all__ = ["rotate_cached_keys"]


def _tokens_to_move(
    slots: Tensor, num_slots: int, positions: dict[str, Tensor], num_positions: int, bad_indices: str
) -> Tensor:
    """Returns the tokens whose slot is not padding, and none of whose indices is bad."""
    tokens = []
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        indices = [("slots", slot, num_slots)]
        indices += [(name, int(values[i]), num_positions) for name, values in positions.items()]
        bad = [(name, index) for name, index, end in indices if not 0 <= index < end]
        if bad and bad_indices == "raise":
            raise bad_index(bad[0][0], i, bad[0][1])
        if not bad:
            tokens.append(i)
    return torch.tensor(tokens, dtype=torch.int64)


def _split(x: Tensor, is_neox: bool) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, -1) if is_neox else (x[..., 0::2], x[..., 1::2])
    return first, second


def _moved(keys: Tensor, old: Tensor, new: Tensor, is_neox: bool) -> Tensor:
    """Rotates float32 keys [n, H, R] back by the rows `old` of the table, [n, R], and on by the rows `new`."""
    x, y = _split(keys, is_neox)
    cos, sin = old[:, None].chunk(2, -1)
    square = cos * cos + sin * sin
    x, y = (x * cos + y * sin) / square, (y * cos - x * sin) / square
    cos, sin = new[:, None].chunk(2, -1)
    x, y = x * cos - y * sin, y * cos + x * sin
    return torch.cat([x, y], -1) if is_neox else torch.stack([x, y], -1).flatten(-2)


def rotate_cached_keys(
    key_cache: Tensor,
    slots: Tensor,
    old_positions: Tensor,
    new_positions: Tensor,
    cos_sin_cache: Tensor,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor | None = None,
    rotary_offset: int = 0,
    k_scales: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Moves the keys in `slots` from old_positions to new_positions: undoes one rotary embedding, applies the other.

    key_cache [N, B, H, D], or packed [N, H, D / x, B, x]; cos_sin_cache [positions, R], cosines and then sines. The
    elements [rotary_offset, rotary_offset + R) of each head are rotated. Pairs are (i, i + R/2) if is_neox, else
    (2i, 2i + 1). Every operation rounds to float32; the result is rounded, or quantised, once. A token whose two
    positions are equal keeps its bytes. k_scales is for formats that do not exist yet.
    """
    num_blocks, block_size = key_cache.shape[0], key_cache.shape[3 if key_cache.dim() == 5 else 1]
    positions = {"old_positions": old_positions, "new_positions": new_positions}
    tokens = _tokens_to_move(slots, num_blocks * block_size, positions, len(cos_sin_cache), bad_indices)
    slots, old, new = (x.cpu().long()[tokens] for x in (slots, old_positions, new_positions))
    slots, old, new = (x[old != new] for x in (slots, old, new))
    where = slots.to(key_cache.device) // block_size, slots.to(key_cache.device) % block_size

    stored = bits(key_cache)
    if key_cache.dim() == 5:
        stored = stored.permute(0, 3, 1, 2, 4)  # [N, B, H, D / x, x]
    entries = stored[where]
    keys = entries.flatten(2)  # a copy, [n, H, D]
    rotated = slice(rotary_offset, rotary_offset + cos_sin_cache.shape[1])
    part = keys[..., rotated].cpu()
    table = cos_sin_cache.cpu().float()
    format = fp8_format(kv_cache_dtype, key_cache.dtype, e4m3_of_bytes)
    if format is None:
        moved = bits(_moved(part.view(key_cache.dtype).float(), table[old], table[new], is_neox).to(key_cache.dtype))
    else:
        assert k_scale is not None  # fp8 formats need it
        scale = k_scale.cpu().reshape(-1, 1)  # one for all heads, or one for each
        moved = quantise(_moved(dequantise(part, scale, format), table[old], table[new], is_neox), scale, format)
    keys[..., rotated] = moved.to(keys.device)
    stored[where] = keys.reshape(entries.shape)
