"""Norms and rotations of queries and keys, with the write into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from multikv import reference
from tests.support.vectorised.writes import _tokens_and_slots, reshape_and_cache, reshape_and_cache_flash

__all__ = ["qk_norm_rope_cache"]


def qk_norm_rope_cache(
    qkv: Tensor,
    q_out: Tensor,
    k_out: Tensor | None,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    positions: Tensor,
    cos_sin_cache: Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    head_size: int,
    is_neox: bool,
    kv_cache_dtype: str,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    q_scale: Tensor | None = None,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = -1.0,
    weight_bias: float = 0.0,
    norm_order: str = "head",
    rotary_offset: int = 0,
    mrope_section: list[int] | None = None,
    mrope_interleaved: bool = False,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """The reference norms and rotates, which it does of all tokens at once; the twin writes the cache."""
    options = {"bad_indices": bad_indices, "e4m3_of_bytes": e4m3_of_bytes}
    is_packed, num_tokens = key_cache.dim() == 5, len(slot_mapping)
    _tokens_and_slots(slot_mapping, key_cache.shape[0] * key_cache.shape[3 if is_packed else 1], bad_indices)
    keys = torch.zeros(num_tokens, num_kv_heads, head_size, dtype=qkv.dtype) if k_out is None else k_out
    reference.qk_norm_rope_cache(
        qkv,
        q_out,
        keys,
        key_cache,
        value_cache,
        torch.full_like(slot_mapping, -1),
        positions,
        cos_sin_cache,
        num_heads,
        num_kv_heads,
        head_size,
        is_neox,
        kv_cache_dtype,
        k_scale,
        v_scale,
        q_scale,
        q_weight,
        k_weight,
        eps,
        weight_bias,
        norm_order,
        rotary_offset,
        mrope_section,
        mrope_interleaved,
        k_scales,
        v_scales,
        **options,
    )
    slots = slot_mapping.cpu()
    if cos_sin_cache is not None:
        at = positions[..., :num_tokens].cpu()
        good = (at >= 0) & (at < len(cos_sin_cache))
        slots = slots.where(good if good.dim() == 1 else good.all(0), -1)
    first = (num_heads + num_kv_heads) * head_size
    values = qkv[:, first : first + num_kv_heads * head_size].unflatten(1, (num_kv_heads, head_size))
    arguments = (keys, values, key_cache, value_cache, slots, kv_cache_dtype, k_scale, v_scale)
    if is_packed:
        reshape_and_cache(*arguments, value_cache.dim() == 5, **options)
    else:
        reshape_and_cache_flash(*arguments, **options)
