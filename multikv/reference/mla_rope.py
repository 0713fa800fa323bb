"""Multi-head latent attention (MLA): rotary embedding of queries and keys, fused with the write into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import bad_index, tokens_and_slots
from .mla import concat_and_cache_mla

__all__ = ["concat_and_cache_mla_rope_fused"]


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool) -> Tensor:
    """Rotates x [T, heads, R] by cos, sin [T, 1, R/2], with the rounding of eager PyTorch on a CPU.

    If x and the table have the same dtype, every product and every sum is rounded to it. If the table is float32,
    products and sums are float32, and the result is rounded once to the dtype of x.
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
    kv_cache_scale: Tensor | None,
    *,
    bad_indices: str = "raise",
    e4m3_of_bytes: str = "e4m3fn",
) -> None:
    """Rotates q_pe and k_pe in place, each token by its position, and then caches as concat_and_cache_mla does.

    positions [>=T]; q_pe [>=T, heads, R]; k_pe [>=T, R] or [>=T, 1, R]; cos_sin_cache [positions, R], cosines and then
    sines. Pairs are (i, i + R/2) if is_neox, else (2i, 2i + 1). A token with a negative slot is rotated but not
    cached. If bad_indices is "skip", a token with a bad slot is also rotated but not cached, and a token with a bad
    position is neither rotated nor cached.
    """
    num_tokens, num_positions = len(slot_mapping), len(cos_sin_cache)
    # A bad slot has to raise an error before q_pe and k_pe are rotated.
    tokens_and_slots(slot_mapping, kv_cache.shape[0] * kv_cache.shape[1], bad_indices)
    positions = positions[:num_tokens].cpu().long()
    good = (positions >= 0) & (positions < num_positions)
    if not good.all() and bad_indices == "raise":
        token = int((~good).nonzero()[0])
        raise bad_index("positions", token, int(positions[token]))

    cos, sin = cos_sin_cache.cpu()[positions[good], None].chunk(2, -1)
    tokens = good.nonzero().flatten().to(q_pe.device)
    for x in (q_pe, k_pe if k_pe.dim() == 3 else k_pe[:, None]):
        x[tokens] = _rotated(x[tokens].cpu(), cos, sin, is_neox).to(x.device)

    slots = slot_mapping.cpu().where(good, -1)
    k_pe = k_pe.flatten(1)
    concat_and_cache_mla(
        kv_c,
        k_pe,
        kv_cache,
        slots,
        kv_cache_dtype,
        kv_cache_scale,
        bad_indices=bad_indices,
        e4m3_of_bytes=e4m3_of_bytes,
    )
