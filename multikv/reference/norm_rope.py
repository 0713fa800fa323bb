"""RMS norm and rotary embedding of queries and keys, alone, and in one pass with the write into the cache."""

from __future__ import annotations

import torch
from torch import Tensor

from .formats import FP8_FORMATS, bad_index, bits, quantise, tokens_and_slots
from .mla_rope import _rotated
from .reshape_and_cache import reshape_and_cache, reshape_and_cache_flash

__all__ = ["qk_norm_rope_cache", "rms_norm", "rotary_embedding"]


def _sum_of_squares(x: Tensor) -> Tensor:
    """Returns the sums over the last dimension of float32 x: neighbours are added until one number is left."""
    sums = x * x
    while sums.shape[-1] > 1:
        if sums.shape[-1] % 2 == 1:
            sums = torch.nn.functional.pad(sums, (0, 1))
        sums = sums[..., 0::2] + sums[..., 1::2]
    return sums[..., 0]


def _normed(x: Tensor, weight: Tensor | None, eps: float, weight_bias: float) -> Tensor:
    """Returns the RMS norm over the last dimension of x, on a CPU. Every operation rounds to float32."""
    size, eps_, bias = torch.tensor([x.shape[-1], eps, weight_bias], dtype=torch.float32)
    root = (_sum_of_squares(x.float()) / size + eps_).double().sqrt().float()  # torch rounds float32 roots wrongly
    y = x.float() * (torch.ones_like(root) / root)[..., None]
    normed: Tensor = y if weight is None else y * (weight.cpu().float() + bias)
    return normed.to(x.dtype)


def rms_norm(out: Tensor, input: Tensor, weight: Tensor | None, eps: float, weight_bias: float = 0.0) -> None:
    """Writes out = x / sqrt(mean(x * x) + eps) * (weight + weight_bias), with the mean over the last dimension."""
    if input.shape[-1] > 0:
        out.copy_(_normed(input.cpu(), weight, eps, weight_bias))


def _good_positions(positions: Tensor, num_positions: int, bad_indices: str) -> Tensor:
    """Returns which tokens of positions [T], or [3, T], have positions in the table."""
    good = (positions >= 0) & (positions < num_positions)
    if not good.all() and bad_indices == "raise":
        at = (~good).nonzero()[0].tolist()
        raise bad_index("positions", ", ".join(map(str, at)), int(positions[tuple(at)]))
    return good if good.dim() == 1 else good.all(0)


def _rotated_part(x: Tensor, cos: Tensor, sin: Tensor, is_neox: bool, offset: int) -> Tensor:
    """Returns x [T, H, D] with the elements [offset, offset + R) rotated by cos, sin [T, R / 2]."""
    x = x.clone()
    part = x[..., offset : offset + 2 * cos.shape[1]]
    part.copy_(_rotated(part, cos[:, None], sin[:, None], is_neox))
    return x


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
    *,
    bad_indices: str = "raise",
) -> None:
    """Rotates the first R elements of each head of query and key in place, each token by its position.

    positions [T]; query, key [T, H * D] or [T, H, D]; cos_sin_cache [positions, R], cosines and then sines.
    """
    positions = positions.cpu().long()
    good = _good_positions(positions, len(cos_sin_cache), bad_indices)
    cos, sin = cos_sin_cache.cpu()[positions[good]].chunk(2, -1)
    tokens = good.nonzero().flatten().to(query.device)
    for rows in (query, key):
        if rows is not None:
            x = rows if rows.dim() == 3 else rows.unflatten(1, (rows.shape[1] // head_size, head_size))
            x[tokens] = _rotated_part(x[tokens].cpu(), cos, sin, is_neox, 0).to(x.device)


def _angles(table: Tensor, positions: Tensor, section: list[int] | None, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines of tokens, [T, R / 2] each, from positions [T] or, with a section, [3, T]."""
    num_pairs = table.shape[1] // 2
    pairs = torch.arange(num_pairs)
    if section is None:
        at = positions[:, None]
    else:
        t, h, w = section
        if interleaved:
            is_h, is_w = (pairs % 3 == 1) & (pairs < 3 * h), (pairs % 3 == 2) & (pairs < 3 * w)
        else:
            is_h, is_w = (pairs >= t) & (pairs < t + h), pairs >= t + h
        at = positions.T[:, is_h.long() + 2 * is_w.long()]
    return table[at, pairs], table[at, num_pairs + pairs]


def _check_indices(
    slot_mapping: Tensor, num_slots: int, positions: Tensor, num_positions: int | None, bad_indices: str
) -> Tensor:
    """Returns which tokens are processed. Slots are checked first; num_positions is None without a table."""
    tokens_and_slots(slot_mapping, num_slots, bad_indices)
    if num_positions is None:
        return torch.ones(len(slot_mapping), dtype=torch.bool)
    return _good_positions(positions[..., : len(slot_mapping)].cpu().long(), num_positions, bad_indices)


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
    """Norms (if eps >= 0) and rotates (if there is a table) q and k, and caches k and v as reshape_and_cache* does.

    qkv [>=T, >=(Hq + 2 * Hk) * D]: the query heads of a token, then its key heads, then its value heads. q_out [>=T,
    Hq, D]; k_out [>=T, Hk, D]; caches [N, B, Hk, D], or packed. positions [>=T], or [3, >=T] with mrope_section.
    norm_order: "head" norms each head and then rotates; "after_rope" rotates, and then norms each head; "all_heads"
    has one mean over all heads of a side, and then rotates. A token with a bad position is not processed at all.
    """
    num_slots = key_cache.shape[0] * key_cache.shape[3 if key_cache.dim() == 5 else 1]
    num_positions = None if cos_sin_cache is None else len(cos_sin_cache)
    good = _check_indices(slot_mapping, num_slots, positions, num_positions, bad_indices)
    tokens = good.nonzero().flatten()
    sizes = [num_heads * head_size, num_kv_heads * head_size, num_kv_heads * head_size]
    q, k, v = (x.unflatten(1, (-1, head_size)) for x in qkv[: len(good), : sum(sizes)].cpu().split(sizes, 1)[0:3])
    if cos_sin_cache is not None:
        at = positions[..., tokens.to(positions.device)].cpu().long()
        cos, sin = _angles(cos_sin_cache.cpu(), at, mrope_section, mrope_interleaved)

    def result(x: Tensor, weight: Tensor | None) -> Tensor:
        if eps >= 0 and norm_order == "all_heads":
            x = _normed(x.flatten(1), weight, eps, weight_bias).view(x.shape)
        if eps >= 0 and norm_order == "head":
            x = _normed(x, weight, eps, weight_bias)
        if cos_sin_cache is not None:
            x = _rotated_part(x, cos, sin, is_neox, rotary_offset)
        if eps >= 0 and norm_order == "after_rope":
            x = _normed(x, weight, eps, weight_bias)
        return x

    rotated_k = k.clone()
    rotated_k[tokens] = result(k[tokens], k_weight)
    rotated_q = result(q[tokens], q_weight) if num_heads > 0 else q[tokens]
    if q_out.dtype == qkv.dtype:
        bits(q_out)[tokens.to(q_out.device)] = bits(rotated_q).to(q_out.device)
    else:
        assert q_scale is not None  # a float8 q_out needs it
        (format,) = (name for name, format in FP8_FORMATS.items() if format.dtype == q_out.dtype)
        bits(q_out)[tokens.to(q_out.device)] = quantise(rotated_q, q_scale.reshape(()), format).to(q_out.device)
    if k_out is not None:
        bits(k_out)[tokens.to(k_out.device)] = bits(rotated_k[tokens]).to(k_out.device)

    slots = slot_mapping.cpu().where(good, -1)
    arguments = (rotated_k, v, key_cache, value_cache, slots, kv_cache_dtype, k_scale, v_scale)
    if key_cache.dim() == 4:
        reshape_and_cache_flash(*arguments, bad_indices=bad_indices, e4m3_of_bytes=e4m3_of_bytes)
    else:
        is_interleaved = value_cache.dim() == 5
        reshape_and_cache(*arguments, is_interleaved, bad_indices=bad_indices, e4m3_of_bytes=e4m3_of_bytes)
