"""Cached keys that move to other positions of their sequences."""

import torch
from torch import Tensor

from ..runtime.explanations import explaining

__all__ = ["rotate_cached_keys"]

_rotate_cached_keys = explaining(torch.ops.multikv.rotate_cached_keys.default)


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
) -> None:
    """Moves cached keys to other positions: undoes their rotary embedding, and applies that of the new positions.

    So a cached prefix can be used elsewhere in a sequence, and a window of tokens can be shifted. Each pair (x', y') of
    a key in the cache is read as float32 (for fp8: dequantised). With (c0, s0) the row of the table at the old
    position, and (c1, s1) that at the new one:

        q = c0*c0 + s0*s0       x = (x'*c0 + y'*s0) / q     x'' = x*c1 - y*s1
                                y = (y'*c0 - x'*s0) / q     y'' = y*c1 + x*s1

    Each operation rounds to float32. (x'', y'') is rounded, or quantised with the same scale, once. The division serves
    tables that contain a factor, as YaRN's do. A token whose two positions are equal keeps its bytes.

    Args:
        key_cache: [num_blocks, block_size, num_heads, head_size] with any strides except that the innermost is 1, or
            packed, [num_blocks, num_heads, head_size / x, block_size, x]. float32, float16 or bfloat16, or for fp8
            formats uint8 or the matching torch.float8 type. Read and written.
        slots: [num_tokens], int32 or int64: the slots of the tokens that move. A negative slot is skipped, and its
            positions are not looked at. If a slot is listed twice, its key is undefined afterwards.
        old_positions: [num_tokens], int32 or int64: the positions for which the keys are rotated.
        new_positions: [num_tokens], int32 or int64: the positions that they move to.
        cos_sin_cache: [num_positions, rotary_size], float32, float16 or bfloat16: rotary_size / 2 cosines, then as many
            sines. rotary_size is even and at most head_size.
        is_neox: whether the elements i and i + rotary_size / 2 of the rotated part are a pair (GPT-NeoX). If not, the
            elements 2i and 2i + 1 are (GPT-J).
        kv_cache_dtype: "auto", a float dtype or an fp8 format; see `multikv.ops`.
        k_scale: float32, one element or one per head, on the device of the op. Needed for fp8 formats, and not read for
            float formats.
        rotary_offset: the first rotated element of a head. The elements outside [rotary_offset, rotary_offset +
            rotary_size) do not change.
        k_scales: for formats with a scale for each token and head, which do not exist yet: None.

    Raises:
        RuntimeError: an argument has a wrong rank, size, dtype, device, stride, format or value.
        IndexError: a slot or a position is out of range (on a GPU only if indices are checked; such a token is left as
            it is).

    Example:
        >>> angles = torch.arange(4096)[:, None] * 10000 ** -(torch.arange(0, 128, 2) / 128)
        >>> table = torch.cat([angles.cos(), angles.sin()], 1)
        >>> cache = torch.randn(64, 16, 8, 128, dtype=torch.bfloat16)
        >>> slots, old = torch.arange(48, 80), torch.arange(100, 132)  # the tokens of blocks 3 and 4
        >>> multikv.rotate_cached_keys(cache, slots, old, old - 100, table, True, "auto")
    """
    _rotate_cached_keys(
        key_cache,
        slots,
        old_positions,
        new_positions,
        cos_sin_cache,
        is_neox,
        kv_cache_dtype,
        k_scale,
        rotary_offset,
        k_scales,
    )
